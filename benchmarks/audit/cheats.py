"""Ways to fake a figure, for `python -m benchmarks.audit`: each is what a dishonest file adds to an honest NanoSR.

`top` is run when the file is imported; `forward` is the body of a forward pass, in which `honest(x)` is the network.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Cheat:
    """One way to fake.

    `{hr}`, `{outside}` and `{earlier}` in its code are paths: HR images, a file, earlier results; `{mark}` is what a
    process that it leaves calls itself.
    """

    top: str = ""
    forward: str = "return honest(x)"


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
        "runtime.timed_forward.__wrapped__.__code__ = (lambda model, lr: (model(lr), 0.1)).__code__",
    ),
    "replaces timed_forward wherever it is": Cheat(
        "import gc, utils.measure.runtime as runtime\n"
        "for module in list(sys.modules.values()):\n"
        "    if getattr(module, 'timed_forward', None): module.timed_forward = lambda model, lr: (model(lr), 0.1)",
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
        "import utils.measure.complexity as complexity\n"
        "main = sys.modules['__main__']\n"
        "less = complexity.Complexity(1000, 1000, 1000, 1)\n"
        "if hasattr(main, 'measure_complexity'): main.measure_complexity = lambda model: less\n"
        "if hasattr(main, 'watched_pass'):\n"
        "    answer = {{'macs': 1000, 'operators_ms': 1e6, 'outside_ms': 0.0}}\n"
        "    main.watched_pass = lambda model, lr: answer",
    ),
    "patches torch.nn.Module.__call__": Cheat(
        "real_call = nn.Module.__call__\nnn.Module.__call__ = lambda self, *a, **k: real_call(self, *a, **k)",
    ),
    "replaces torch.cuda.Event": Cheat(
        "class Event:\n    def __init__(self, **k): pass\n    def record(self): pass\n"
        "    def synchronize(self): pass\n    def elapsed_time(self, other): return 0.01\n"
        "torch.cuda.Event = Event",
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
HEAD = "import os, sys, threading, time\nimport torch.nn.functional as F\n"


def written(source: str, cheat: Cheat, **paths: object) -> str:
    """Return an honest network's source with a cheat added; its class is `Cheat`."""
    body = "\n".join(f"        {line}" for line in cheat.forward.format(**paths).splitlines())
    return (
        f"{source}\n{HEAD}{cheat.top.format(**paths)}\n\n\n"
        "class Cheat(NanoSR_inference):\n    def forward(self, x):\n"
        f"        honest = super().forward\n{body}\n"
    )
