"""The organizers' program: only select_model matters here. Its imports are like theirs, one of them not installed."""

import argparse
import importlib
import os

import torch
from utils.model_summary import get_model_flops

from utils import utils_image as util


def select_model(args, device):
    model_id = args.model_id
    if model_id == 0:
        # a plain network, named arguments, a checkpoint that holds the state dict
        from models.team01_Plain import Plain

        name, data_range = f"{model_id:02}_Baseline", 1.0
        model_path = os.path.join("model_zoo", "team01_Plain.pth")
        model = Plain(upscale=4)
        model.load_state_dict(torch.load(model_path), strict=True)
    elif model_id == 1:
        # positional and named arguments, range 255
        from models.team01_Plain import Plain

        name, data_range = f"{model_id:02}_Range255", 255.0
        model_path = os.path.join("model_zoo", "team01_Plain.pth")
        model = Plain(3, 3, upscale=4)
        model.load_state_dict(torch.load(model_path, map_location="cpu"), strict=True)
    elif model_id == 2:
        # a module by its number, weights under params_ema
        module = importlib.import_module(f"models.team{model_id:02}_Nested")
        name, data_range = f"{model_id:02}_Nested", 1.0
        model = module.Nested()
        model.load_state_dict(torch.load(os.path.join("model_zoo", "team02_Nested.pth"))["params_ema"], strict=True)
    elif model_id == 3:
        # strict=False
        from models.team01_Plain import Plain

        name, data_range = f"{model_id:02}_Lenient", 1.0
        model = Plain()
        model.load_state_dict(torch.load(os.path.join("model_zoo", "team03_Lenient.pth")), strict=False)
    elif model_id == 4:
        # a team that withdrew
        pass
    elif model_id == 5:
        # re-parameterized after loading, by a call and by a loop over the modules
        from models.team05_Repa import Repa

        name, data_range = f"{model_id:02}_Repa", 1.0
        model = Repa()
        model.load_state_dict(torch.load(os.path.join("model_zoo", "team05_Repa.pth")), strict=True)
        model.repa()
        for module in model.modules():
            if hasattr(module, "switch_deploy"):
                module.switch_deploy()
    elif model_id == 6:
        # weights beside the model file, loaded by a method; warm-up passes
        from models.team06_OwnLoader import OwnLoader

        name, data_range = f"{model_id:02}_OwnLoader", 1.0
        model = OwnLoader()
        model.load_weights(os.path.join("models", "team06_weights.pt"))
        with torch.no_grad():
            for _ in range(2):
                model(torch.rand(1, 3, 16, 16).to(device))
        if torch.cuda.is_available():
            torch.cuda.synchronize()
    elif model_id == 7:
        # .cuda() and device="cuda" in the constructor, and in every pass
        from models.team07_Cuda import Cuda

        name, data_range = f"{model_id:02}_Cuda", 1.0
        model = Cuda().cuda()
        model.load_state_dict(torch.load(os.path.join("model_zoo", "team01_Plain.pth"), map_location="cuda"))
    elif model_id == 8:
        # a checkpoint that holds more than tensors
        from models.team01_Plain import Plain

        name, data_range = f"{model_id:02}_Pickled", 1.0
        torch.load(os.path.join("model_zoo", "team08_Pickled.pth"))
        model = Plain()
        model.load_state_dict(torch.load(os.path.join("model_zoo", "team01_Plain.pth")))
    elif model_id == 9:
        # imports what is not installed
        from models.team09_Import import Needy

        name, data_range = f"{model_id:02}_Needy", 1.0
        model = Needy()
    elif model_id == 10:
        # weights that were never uploaded
        from models.team01_Plain import Plain

        name, data_range = f"{model_id:02}_NoWeights", 1.0
        model = Plain()
        model.load_state_dict(torch.load(os.path.join("model_zoo", "team10_NoWeights.pth")))
    elif model_id == 11:
        # half precision, as is
        from models.team11_Half import Half

        name, data_range = f"{model_id:02}_Half", 1.0
        model = Half()
        model.load_state_dict(torch.load(os.path.join("model_zoo", "team01_Plain.pth")))
        model = model.half()
    elif model_id == 12:
        # an operator compiled for CUDA
        from models.team12_Operator import Operator

        name, data_range = f"{model_id:02}_Operator", 1.0
        model = Operator()
    else:
        raise NotImplementedError(f"Model {model_id} is not implemented.")

    model.eval()
    tile = None
    for _, v in model.named_parameters():
        v.requires_grad = False
    model = model.to(device)
    return model, name, data_range, tile


def main(args):
    flops = get_model_flops(select_model(args, torch.device("cuda"))[0], (3, 256, 256), False)
    util.mkdir(args.save_dir)
    print(flops)


if __name__ == "__main__":
    parser = argparse.ArgumentParser("NTIRE-EfficientSR")
    parser.add_argument("--model_id", default=0, type=int)
    parser.add_argument("--save_dir", default="results", type=str)
    main(parser.parse_args())
