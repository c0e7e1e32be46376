def get_model_flops(model, input_res, print_per_layer_stat=True):
    return sum(parameter.numel() for parameter in model.parameters()) * input_res[1] * input_res[2]
