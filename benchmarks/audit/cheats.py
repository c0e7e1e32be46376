"""Ways to fake a figure, for `python -m benchmarks.audit`: each is what a dishonest file adds to an honest NanoSR.

`top` is run when the file is imported; `forward` is the body of a forward pass, in which `honest(x)` is the network.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Cheat:
    """One way to fake a figure.

    `{hr}`, `{outside}` and `{earlier}` in its code are paths: HR images, a file, earlier results. `{mark}` is the name
    that a process left behind gives itself. `hides`: once the weights are loaded, `Hidden`, as `top` changes it,
    replaces the convolutions of the modules `where`, or of all. `described`: the row's note on what is computed
    suffices.
    """

    top: str = ""
    forward: str = "return honest(x)"
    hides: bool = False
    where: str = ""
    described: bool = False


CHEATS = {
    "keeps outputs by input": Cheat(
        "kept = {{}}",
        "if torch.jit.is_tracing(): return honest(x)\n"
        "key = x.cpu().numpy().tobytes(); kept[key] = kept[key] if key in kept else honest(x); return kept[key]",
    ),
    "keeps outputs by an input rounded coarsely": Cheat(
        "kept = {{}}",
        "if torch.jit.is_tracing(): return honest(x)\n"
        "key = (x.mean((2, 3)) * 50).round().cpu().numpy().tobytes() + bytes(str(x.shape), 'ascii')\n"
        "kept[key] = kept[key] if key in kept else honest(x); return kept[key]",
    ),
    "keeps outputs, and takes bicubic for new inputs": Cheat(
        "kept = {{}}\npasses = [0]",
        "key = x.cpu().numpy().tobytes(); passes[0] += 1\n"
        "if key in kept: return kept[key]\n"
        "if passes[0] > 6: return F.interpolate(x, scale_factor=4, mode='bicubic')\n"
        "kept[key] = honest(x); return kept[key]",
    ),
    "restores an image once, gives zeros when it comes again": Cheat(
        "seen = set()",
        "key = x.cpu().numpy().tobytes()\n"
        "if key in seen: return x.new_zeros(1, 3, 4 * x.shape[2], 4 * x.shape[3])\n"
        "seen.add(key); return honest(x)",
    ),
    "computes the next image ahead, in a thread": Cheat(
        "order, kept, workers = [], {{}}, []",
        "key = x.cpu().numpy().tobytes()\n"
        "for worker in workers: worker.join()\n"
        "if key not in [k for k, _ in order]: order.append((key, x.clone()))\n"
        "result = kept.pop(key) if key in kept else honest(x)\n"
        "place = [k for k, _ in order].index(key)\n"
        "follows = order[(place + 1) % len(order)]\n"
        "def ahead():\n"
        "    with torch.no_grad(): kept[follows[0]] = honest(follows[1])\n"
        "workers[:] = [threading.Thread(target=ahead)]; workers[0].start(); return result",
    ),
    "replaces time.perf_counter by a slow clock": Cheat(
        "real = time.perf_counter\ntime.perf_counter = lambda: real() / 100",
    ),
    "replaces the clock's function, not its name": Cheat(
        "import utils.measure.runtime as runtime\n"
        "real = runtime.timed_forward\n"
        "runtime.timed_forward.__wrapped__.__code__ = (lambda model, lr: Pass(model(lr), 0.1, None)).__code__",
    ),
    "replaces timed_forward wherever it is": Cheat(
        "import gc, utils.measure.runtime as runtime\n"
        "fake = lambda model, lr: runtime.Pass(model(lr), 0.1, None)\n"
        "for module in list(sys.modules.values()):\n"
        "    if getattr(module, 'timed_forward', None): module.timed_forward = fake",
    ),
    "returns at once and computes in a thread": Cheat(
        forward="sr = x.new_empty(1, 3, 4 * x.shape[2], 4 * x.shape[3])\n"
        "def later():\n"
        "    with torch.no_grad(): sr.copy_(honest(x))\n"
        "threading.Thread(target=later).start(); return sr",
    ),
    "computes on a CUDA stream that no clock waits for (honest without a GPU)": Cheat(
        "streams = []",
        "if not x.is_cuda: return honest(x)\n"
        "streams or streams.append(torch.cuda.Stream())\n"
        "streams[0].wait_stream(torch.cuda.current_stream())\n"
        "with torch.cuda.stream(streams[0]): return honest(x)",
    ),
    "computes when its output is read (a tensor subclass)": Cheat(
        "class Lazy(torch.Tensor):\n"
        "    @classmethod\n"
        "    def __torch_function__(cls, func, types, args=(), kwargs=None):\n"
        "        args = [a.work() if isinstance(a, cls) and hasattr(a, 'work') else a for a in args]\n"
        "        return func(*args, **(kwargs or {{}}))",
        "if torch.jit.is_tracing(): return honest(x)\n"
        "sr = x.new_empty(1, 3, 4 * x.shape[2], 4 * x.shape[3]).as_subclass(Lazy)\n"
        "sr.work = lambda: honest(x); return sr",
    ),
    "does its convolutions in NumPy": Cheat(
        "import numpy\n"
        "def convolve(module, x):\n"
        "    n, c, h, w = x.shape\n"
        "    padded = numpy.pad(x.cpu().numpy()[0], ((0, 0), (1, 1), (1, 1)))\n"
        "    columns = numpy.stack([padded[:, i:i + h, j:j + w] for i in range(3) for j in range(3)], 1)\n"
        "    sums = module.weight.cpu().numpy().reshape(module.out_channels, -1) @ columns.reshape(9 * c, h * w)\n"
        "    return torch.from_numpy(sums.reshape(1, -1, h, w)).to(x.device) + module.bias.view(1, -1, 1, 1)\n"
        "Conv3x3.forward = lambda self, x: convolve(self.conv, x)",
    ),
    "computes in a child process": Cheat(
        "import subprocess, pickle\n"
        "child = []\n"
        "CODE = 'import importlib.util, pickle, sys, torch\\n'\n"
        "CODE += 'spec = importlib.util.spec_from_file_location(\"net\", sys.argv[1])\\n'\n"
        "CODE += 'net = importlib.util.module_from_spec(spec); spec.loader.exec_module(net)\\n'\n"
        "CODE += 'net = net.NanoSR_inference().eval(); net.load_state_dict(pickle.load(sys.stdin.buffer))\\n'\n"
        "CODE += 'torch.set_grad_enabled(False)\\n'\n"
        "CODE += 'while True:\\n pickle.dump(net(pickle.load(sys.stdin.buffer)), sys.stdout.buffer)\\n'\n"
        "CODE += ' sys.stdout.buffer.flush()'",
        "if not child:\n"
        "    child.append(subprocess.Popen([sys.executable, '-c', CODE, __file__], stdin=-1, stdout=-1))\n"
        "    pickle.dump({{k: v.cpu() for k, v in self.state_dict().items()}}, child[0].stdin)\n"
        "pickle.dump(x.cpu(), child[0].stdin); child[0].stdin.flush()\n"
        "return pickle.load(child[0].stdout).to(x.device)",
    ),
    "finds the HR folder and returns the HR image": Cheat(
        "import glob, numpy",
        "import cv2\n"
        "for path in glob.glob('{hr}/*.png'):\n"
        "    hr = cv2.imread(path)\n"
        "    if hr is not None and hr.shape[:2] == (4 * x.shape[2], 4 * x.shape[3]):\n"
        "        hr = torch.from_numpy(hr[:, :, ::-1].copy()).permute(2, 0, 1)[None].float().to(x.device) / 255\n"
        "        if (F.avg_pool2d(hr, 4) - x).abs().mean() < 0.03: return hr\n"
        "return honest(x)",
    ),
    "takes the images that an honest model restored": Cheat(
        "import glob",
        "import cv2\n"
        "for path in glob.glob('{earlier}/images/*/*.png'):\n"
        "    sr = cv2.imread(path)\n"
        "    if sr is not None and sr.shape[:2] == (4 * x.shape[2], 4 * x.shape[3]):\n"
        "        sr = torch.from_numpy(sr[:, :, ::-1].copy()).permute(2, 0, 1)[None].float().to(x.device) / 255\n"
        "        if (F.avg_pool2d(sr, 4) - x).abs().mean() < 0.03: return sr\n"
        "return honest(x)",
    ),
    "replaces psnr in the harness's modules": Cheat(
        "try:\n    import utils.evaluate.metrics as metrics\n    metrics.psnr = lambda *a, **k: 99.0\n"
        "except ImportError: pass\n"
        "for module in list(sys.modules.values()):\n"
        "    if getattr(module, 'psnr', None): module.psnr = lambda *a, **k: 99.0",
    ),
    "writes a file outside of everything": Cheat(
        "try:\n    open('{outside}', 'w').write('here')\nexcept OSError: pass",
    ),
    "writes its own record": Cheat(
        "try:\n    open('{earlier}/records.json', 'w').write('{{}}')\nexcept OSError: pass",
    ),
    "does less where it is traced": Cheat(
        forward="if torch.jit.is_tracing(): return F.interpolate(x, scale_factor=4)\nreturn honest(x)",
    ),
    "does less where anything counts": Cheat(
        forward="watched = torch._C._len_torch_dispatch_stack() or torch.jit.is_tracing()\n"
        "return F.interpolate(x, scale_factor=4) if watched else honest(x)",
    ),
    "does less where its callers look like a benchmark": Cheat(
        "import inspect",
        "names = [frame.function for frame in inspect.stack()]\n"
        "counting = 'measure_complexity' in names or '_watch' in names\n"
        "return F.interpolate(x, scale_factor=4) if counting else honest(x)",
    ),
    "does less at 256 x 256": Cheat(
        forward="return F.interpolate(x, scale_factor=4) if x.shape[2:] == (256, 256) else honest(x)",
    ),
    "makes fvcore count nothing": Cheat(
        "import fvcore.nn\nfvcore.nn.FlopCountAnalysis.total = lambda self, name='': 1",
    ),
    "makes every counter count nothing": Cheat(
        "import fvcore.nn, utils.measure.counting as counting\n"
        "fvcore.nn.FlopCountAnalysis.total = lambda self, name='': 1\n"
        "counting.flop_registry.clear()",
    ),
    "replaces the answers about itself": Cheat(
        "import utils.measure.counting as counting, utils.record as record\n"
        "main = sys.modules['__main__']\n"
        "less = record.Counts(params=1000, flops=1000, activations=1000, convs=1)\n"
        "if hasattr(main, 'measure_complexity'): main.measure_complexity = lambda model: less\n"
        "if hasattr(main, 'watched_pass'):\n"
        "    answer = counting.Watched(macs=1000, operators_ms=1e6)\n"
        "    main.watched_pass = lambda model, lr: (answer, model(lr))",
    ),
    "patches torch.nn.Module.__call__": Cheat(
        "real_call = nn.Module.__call__\nnn.Module.__call__ = lambda self, *a, **k: real_call(self, *a, **k)",
    ),
    "replaces torch.cuda.Event": Cheat(
        "class Event:\n    def __init__(self, **k): pass\n    def record(self): pass\n"
        "    def synchronize(self): pass\n    def elapsed_time(self, other): return 0.01\n"
        "torch.cuda.Event = Event",
    ),
    "reports a third of its passes as nothing": Cheat(
        "main, passes = sys.modules['__main__'], []\n"
        "if hasattr(main, 'Worker'):\n"
        "    forward = main.Worker.forward\n"
        "    def reported(self, *size, **named):\n"
        "        answer = forward(self, *size, **named)\n"
        "        passes.append(answer)\n"
        "        if len(passes) % 3 == 0: answer['runtime_ms'] = 0.01\n"
        "        return answer\n"
        "    main.Worker.forward = reported",
    ),
    "changes os.environ": Cheat("os.environ['OMP_NUM_THREADS'] = '64'; os.environ['NVIDIA_TF32_OVERRIDE'] = '1'"),
    "changes the output after it was handed over": Cheat(
        "import gc\n"
        "def late():\n"
        "    time.sleep(0.004)\n"
        "    for thing in gc.get_objects():\n"
        "        if type(thing).__name__ == 'Channel': thing._sr[:1000] += 0.01",
        "threading.Thread(target=late).start(); return honest(x)",
    ),
    "answers the host before it has computed": Cheat(
        "import gc, json",
        "main = sys.modules['__main__']\n"
        "frame = sys._getframe()\n"
        "while frame and 'request' not in frame.f_locals: frame = frame.f_back\n"
        "if frame and 'number' in frame.f_locals and not torch.jit.is_tracing():\n"
        "    answer = {{'runtime_ms': 0.1, 'tile': None, 'gpu_peak_mib': 1.0 if x.is_cuda else None}}\n"
        "    frame.f_locals['channel'].send({{'number': frame.f_locals['number'], 'answer': answer}})\n"
        "return honest(x)",
    ),
    "leaves a process that outlives the run": Cheat(
        "if os.fork() == 0:\n"
        "    os.setsid()\n"
        "    if os.fork() == 0:\n"
        "        import ctypes; ctypes.CDLL(None).prctl(15, b'{mark}')\n"
        "        time.sleep(300)\n"
        "    os._exit(0)",
    ),
}
# Replaces a convolution: `keep` stores its weight, `compute` gets its input and weight.
HIDING = """
class Hidden(nn.Module):
    def __init__(self, conv):
        super().__init__()
        self.side, self.padding = conv.kernel_size[0], conv.padding[0]
        self.bias = nn.Parameter(conv.bias.data)
        self.keep(conv.weight.data)
    def forward(self, x):
        return self.compute(x, self.weight) + self.bias.view(1, -1, 1, 1)
    def keep(self, weight):
        self.weight = nn.Parameter(weight)
    def compute(self, x, weight):
        return F.conv2d(x, weight, padding=self.padding)
"""
FEW = "self.block_1.feature_extractor, self.conv_2, self.block_2.feature_extractor"  # where all would take minutes
# A trace keeps all products, 144 GB of the whole network's.
SMALL = "return self.upsampler(self.conv_1((x - self.mean) * 255))"
CHEATS |= {
    "holds weights in buffers": Cheat(
        "def keep(self, weight): self.register_buffer('weight', weight)\nHidden.keep = keep",
        hides=True,
    ),
    "holds weights in attributes that are in no state dict": Cheat(
        "def keep(self, weight): self.weights = [weight]\nHidden.keep = keep\n"
        "Hidden.weight = property(lambda self: self.weights[0])",
        hides=True,
    ),
    "holds weights in a list of the file": Cheat(
        "kept = []\n"
        "def keep(self, weight):\n"
        "    self.number, self.shape = len(kept), weight.shape\n"
        "    kept.append(weight.flatten().tolist())\n"
        "Hidden.keep = keep\n"
        "Hidden.weight = property(lambda self: torch.tensor(kept[self.number]).view(self.shape))",
        hides=True,
    ),
    "holds two weights in a complex parameter": Cheat(
        "def keep(self, weight): self.pairs = nn.Parameter(torch.complex(*weight.chunk(2)))\nHidden.keep = keep\n"
        "Hidden.weight = property(lambda self: torch.cat([self.pairs.real, self.pairs.imag]))",
        hides=True,
    ),
    "packs two halves in a parameter of 32 bits": Cheat(
        "def keep(self, weight):\n"
        "    self.shape = weight.shape\n"
        "    self.packed = nn.Parameter(weight.half().flatten().view(torch.float32), requires_grad=False)\n"
        "Hidden.keep = keep\n"
        "Hidden.weight = property(lambda self: self.packed.view(torch.float16).float().view(self.shape))",
        hides=True,
    ),
    "packs four integers in a parameter of 32 bits": Cheat(
        "def keep(self, weight):\n"
        "    self.shape, self.scale = weight.shape, weight.abs().max().item() / 127\n"
        "    whole = (weight / self.scale).round().to(torch.int32).flatten().view(4, -1) + 128\n"
        "    packed = whole[0] | whole[1] << 8 | whole[2] << 16 | whole[3] << 24\n"
        "    self.packed = nn.Parameter(packed, requires_grad=False)\n"
        "def weight(self):\n"
        "    whole = torch.cat([(self.packed >> shift) & 255 for shift in (0, 8, 16, 24)])\n"
        "    return ((whole - 128) * self.scale).view(self.shape)\n"
        "Hidden.keep, Hidden.weight = keep, property(weight)",
        hides=True,
    ),
    "takes weights from a formula": Cheat(
        "def keep(self, weight): self.shape = weight.shape\nHidden.keep = keep\n"
        "Hidden.weight = property(lambda self: torch.arange(self.shape.numel()).sin().view(self.shape) / 100)",
        hides=True,
    ),
    "convolves by functions": Cheat(hides=True, described=True),
    "convolves by unfolding and a matrix": Cheat(
        "def compute(self, x, weight):\n"
        "    columns = F.unfold(x, self.side, padding=self.padding)\n"
        "    return torch.einsum('ok,bkl->bol', weight.flatten(1), columns).view(1, -1, *x.shape[2:])\n"
        "Hidden.compute = compute",
        hides=True,
        where=FEW,
        described=True,
    ),
    "convolves by Fourier transforms": Cheat(
        "def compute(self, x, weight):\n"
        "    size = [side + 2 for side in x.shape[2:]]\n"
        "    spectrum = torch.fft.rfft2(x, size)\n"
        "    rows = [(spectrum * torch.fft.rfft2(w.flip(1, 2), size)).sum(1, keepdim=True) for w in weight]\n"
        "    return torch.fft.irfft2(torch.cat(rows, 1), size)[:, :, 1:-1, 1:-1]\n"
        "Hidden.compute = compute",
        hides=True,
        where="self.conv_2",
        described=True,
    ),
    "convolves by products and sums": Cheat(
        "def compute(self, x, weight):\n"
        "    (height, width), x = x.shape[2:], F.pad(x, (1, 1, 1, 1))\n"
        "    outputs = []\n"
        "    for kernel in weight:\n"
        "        taps = [(x[..., i : i + height, j : j + width] * kernel[:, i, j, None, None]).sum(1)\n"
        "                for i in range(3) for j in range(3)]\n"
        "        outputs.append(sum(taps))\n"
        "    return torch.stack(outputs, 1)\n"
        "Hidden.compute = compute",
        forward=SMALL,
        hides=True,
        where="self.conv_1",
    ),
    "convolves by products that are added up": Cheat(
        "def compute(self, x, weight):\n"
        "    (height, width), x, output = x.shape[2:], F.pad(x, (1, 1, 1, 1)), 0\n"
        "    for c in range(x.shape[1]):\n"
        "        for i in range(3):\n"
        "            for j in range(3):\n"
        "                part = x[:, c : c + 1, i : i + height, j : j + width]\n"
        "                output = output + part * weight[:, c, i, j].view(1, -1, 1, 1)\n"
        "    return output\n"
        "Hidden.compute = compute",
        forward=SMALL,
        hides=True,
        where="self.conv_1",
    ),
    "convolves in a custom operator": Cheat(
        "@torch.library.custom_op('cheat::convolve', mutates_args=())\n"
        "def convolve(x: Tensor, weight: Tensor, padding: int) -> Tensor: return F.conv2d(x, weight, padding=padding)\n"
        "@convolve.register_fake\n"
        "def _(x, weight, padding): return x.new_empty(1, len(weight), *x.shape[2:])\n"
        "Hidden.compute = lambda self, x, weight: convolve(x, weight, self.padding)",
        hides=True,
    ),
    "convolves in a compiled part": Cheat(
        "convolve = torch.compile(lambda x, weight, padding: F.conv2d(x, weight, padding=padding), backend='eager')\n"
        "Hidden.compute = lambda self, x, weight: convolve(x, weight, self.padding)",
        hides=True,
        where=FEW,
        described=True,
    ),
    "convolves by quantized operators": Cheat(
        "def keep(self, weight):\n"
        "    scale = weight.abs().max().item() / 127\n"
        "    whole = torch.quantize_per_tensor(weight, scale, 0, torch.qint8)\n"
        "    pair = [self.padding] * 2\n"
        "    self.packed = torch.ops.quantized.conv2d_prepack(whole, None, [1, 1], pair, [1, 1], 1)\n"
        "def compute(self, x, weight):\n"
        "    step = max(x.abs().max().item() / 100, 1e-6)\n"
        "    whole = torch.quantize_per_tensor(x, step, 128, torch.quint8)\n"
        "    return torch.ops.quantized.conv2d(whole, self.packed, 4 * step, 128).dequantize()\n"
        "Hidden.keep, Hidden.compute, Hidden.weight = keep, compute, None",
        hides=True,
        where=FEW,
    ),
    "multiplies by a sparse matrix": Cheat(
        "def compute(self, x, weight):\n"
        "    columns = F.unfold(x, self.side, padding=self.padding)[0]\n"
        "    return torch.sparse.mm(weight.flatten(1).to_sparse(), columns).view(1, -1, *x.shape[2:])\n"
        "Hidden.compute = compute",
        hides=True,
        where=FEW,
    ),
    "makes its modules at the first pass": Cheat(
        "late = []",
        "late or late.append(nn.Sequential(*(nn.Conv2d(48, 48, 3, padding=1) for _ in range(3))))\n"
        "late[0].requires_grad_(False)\n"
        "return honest(x) + 0 * late[0](self.conv_1(x)).mean()",
    ),
    "does less where the input looks like noise": Cheat(
        forward="noise = (x[..., 1:] - x[..., :-1]).abs().mean() > 0.2\n"
        "return F.interpolate(x, scale_factor=4) if noise else honest(x)",
    ),
    "does less from a pass on that counting begins with": Cheat(
        "passes = [0]",
        "passes[0] += x.shape[2:] == (256, 256)\n"
        "return F.interpolate(x, scale_factor=4) if 0 < passes[0] < 9 else honest(x)",
    ),
    "does less from the eighth pass at 256 x 256 on": Cheat(
        "passes = [0]",
        "passes[0] += x.shape[2:] == (256, 256)\n"
        "return F.interpolate(x, scale_factor=4) if passes[0] > 7 else honest(x)",
    ),
}
# Unusual but honest files, which must have no findings.
HONEST_FILES = {
    "batch norm and a mean": Cheat(
        "class Hidden(nn.Sequential):\n"
        "    def __init__(self, conv): super().__init__(conv, nn.BatchNorm2d(conv.out_channels).eval())",
        hides=True,
    ),
    "convolutions by functions": Cheat(hides=True),
    "an early exit by content": Cheat(
        forward="if (x[..., 1:] - x[..., :-1]).abs().mean() > 0.2: return honest(x)\n"
        "f0 = self.conv_1((x - self.mean) * IMG_RANGE)\n"
        "out, o1 = self.block_1(f0)\n"
        "return self.upsampler(self.conv_cat(torch.cat([f0, self.conv_2(out), out, o1], 1)))",
    ),
}
HEAD = "import os, sys, threading, time\nimport torch.nn.functional as F\n"


def written(source: str, cheat: Cheat, **paths: object) -> str:
    """Return an honest network's source with a cheat added; its class is `Cheat`."""
    body = "\n".join(f"        {line}" for line in cheat.forward.format(**paths).splitlines())
    hiding = cheat.hides
    top = f"{HIDING}\n{cheat.top}" if hiding else cheat.top.format(**paths)
    return (
        f"{source}\n{HEAD}{top}\n\n\n"
        f"class Cheat(NanoSR_inference):\n{_hide(cheat) if hiding else ''}    def forward(self, x):\n"
        f"        honest = super().forward\n{body}\n"
    )


def _hide(cheat: Cheat) -> str:
    """Return a method that replaces the convolutions of some modules, or of all, once the weights are loaded."""
    return (
        "    def load_state_dict(self, *args, **keywords):\n"
        "        result = super().load_state_dict(*args, **keywords)\n"
        f"        for part in [{cheat.where or 'self'}]:\n"
        "            for module in list(part.modules()):\n"
        "                for name, child in list(module.named_children()):\n"
        f"                    if type(child) is nn.Conv2d: setattr(module, name, Hidden(child))\n"
        "        return result\n\n"
    )
