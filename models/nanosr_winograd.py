"""NanoSR, fused form, with fewer multiplications, for CPUs: the function and state-dict keys of `team07_NanoSR.py`.

A 3x3 convolution takes 9 multiplications for an output, Winograd's F(4x4, 3x3) takes 36 for 16: tiles of 6 x 6 inputs
and the kernels are transformed, multiplied point by point (over the channels: matrix products) and transformed back. It
pays where a strip of tiles goes all the way, activation or attention included, while it lies in the cache; in tensor
operations the transforms go through memory and cost more than is saved. So this is C, compiled when the network is
built: it needs gcc or clang, for a second, and otherwise only torch.

`precision` "float32" is the same function up to rounding. "bfloat16" rounds maps, transformed tiles and kernels to it,
and computes sums, transforms and activations in float32; it takes a processor with AVX512_BF16.

Sources: A. Lavin, S. Gray, *Fast Algorithms for Convolutional Neural Networks*, CVPR 2016; for the choice of points B.
Barabasz et al., *Error Analysis and Improving the Accuracy of Winograd Convolution for Deep Neural Networks*, 2020.
"""

import ctypes
import functools
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

CHANNELS = 48
SCALE = 4
RGB_MEAN = (0.4488, 0.4371, 0.4040)  # of DIV2K, in [0, 1]
IMG_RANGE = 255.0
# Tiles are evaluated at 0, +-NEAR, +-FAR and infinity; in bfloat16 the usual 1 and 2 give three times the noise.
NEAR, FAR = 0.75, 1.5
THEN = {"nothing": 0, "silu": 1, "attention": 2, "add": 3, "shuffle": 4}  # what follows a convolution; in C, SILU …

SOURCE = r"""
#include <stdint.h>
#include <string.h>

enum { C = CHANNELS, N = 6, OUT = 4, POINTS = N * N };
enum { TILES = 16 };  /* of a strip; transformed they fill half of a 1 MiB cache */
#ifdef __AVX512F__
enum { LANES = 16, ROWS = 8 };  /* ROWS tiles x C sums stay in registers */
#else
enum { LANES = 8, ROWS = 2 };
#endif
enum { PARTS = C / LANES };
typedef float vec __attribute__((vector_size(LANES * 4), aligned(4), may_alias));
typedef int32_t ivec __attribute__((vector_size(LANES * 4), aligned(4), may_alias));

static inline vec load(const float *p) { return *(const vec *)p; }
static inline void store(float *p, vec v) { *(vec *)p = v; }

/* number: what maps, transformed tiles and kernels are made of; everything between is computed in float.
   operand: LANES x STEP numbers, which multiply_add multiplies and adds to LANES sums. */
#ifdef BFLOAT16
#ifndef __AVX512BF16__
#error "bfloat16 takes a processor with AVX512_BF16"
#endif
#include <immintrin.h>
typedef uint16_t number;
typedef __m512bh operand;
enum { STEP = 2 };  /* kernels lie in pairs of input channels: C / 2 x C x 2 */
static inline vec load_number(const number *p) {
    return (vec)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)p)), 16);
}
static inline void store_number(number *p, vec v) {
    _mm256_storeu_si256((__m256i *)p, (__m256i)_mm512_cvtneps_pbh((__m512)v));
}
static inline operand load_operand(const number *p) { return (operand)_mm512_loadu_si512(p); }
static inline operand repeated(const number *p) {
    int32_t pair;
    memcpy(&pair, p, sizeof pair);
    return (operand)_mm512_set1_epi32(pair);
}
static inline vec multiply_add(operand a, operand b, vec sum) { return (vec)_mm512_dpbf16_ps((__m512)sum, a, b); }
#else
typedef float number;
typedef vec operand;
enum { STEP = 1 };  /* kernels lie as C inputs x C outputs */
static inline vec load_number(const number *p) { return load(p); }
static inline void store_number(number *p, vec v) { store(p, v); }
static inline operand load_operand(const number *p) { return load(p); }
static inline operand repeated(const number *p) { return *p - (vec){}; }
static inline vec multiply_add(operand a, operand b, vec sum) { return sum + a * b; }
#endif

/* ROWS x C tile values times C x C kernel values, for one of the points */
static inline void product(const number *v, const number *u, float *m) {
    vec sum[ROWS][PARTS] = {};
    for (int c = 0; c < C; c += STEP, u += STEP * C) {
        operand kernel[PARTS];
        for (int p = 0; p < PARTS; p++) kernel[p] = load_operand(u + STEP * p * LANES);
#pragma GCC unroll 8
        for (int r = 0; r < ROWS; r++) {
            operand value = repeated(v + r * C + c);
            for (int p = 0; p < PARTS; p++) sum[r][p] = multiply_add(value, kernel[p], sum[r][p]);
        }
    }
    for (int r = 0; r < ROWS; r++)
        for (int p = 0; p < PARTS; p++) store(m + r * C + p * LANES, sum[r][p]);
}

static inline vec choose(ivec mask, vec a, vec b) { return (vec)(((ivec)a & mask) | ((ivec)b & ~mask)); }

static inline vec sigmoid(vec x) {
    const vec zero = {};
    vec y = x * -1.44269504f;  /* exp(-x) = 2^y */
    y = choose(y < 126.f, y, zero + 126.f);
    y = choose(y > -126.f, y, zero - 126.f);
    vec shifted = y + 12582912.f;  /* 1.5 x 2^23: the lowest bits hold y rounded */
    vec f = y - (shifted - 12582912.f);
    vec p = .0013333558f + f * .000154035f;  /* Taylor series of 2^f on [-1/2, 1/2] */
    p = .0096181291f + f * p;
    p = .0555041087f + f * p;
    p = .240226507f + f * p;
    p = .693147181f + f * p;
    p = 1.f + f * p;
    return 1.f / (1.f + (vec)((ivec)p + ((ivec)shifted << 23)));
}

static inline void input_1d(const vec d[N], vec v[N]) {
    const float a = NEAR * NEAR, b = FAR * FAR;
    vec near_even = d[4] - b * d[2], near_odd = NEAR * (d[3] - b * d[1]);
    vec far_even = d[4] - a * d[2], far_odd = FAR * (d[3] - a * d[1]);
    v[0] = a * b * d[0] - (a + b) * d[2] + d[4];
    v[1] = near_even + near_odd;
    v[2] = near_even - near_odd;
    v[3] = far_even + far_odd;
    v[4] = far_even - far_odd;
    v[5] = a * b * d[1] - (a + b) * d[3] + d[5];
}

static inline void output_1d(const vec m[N], vec o[OUT]) {
    const float a = NEAR * NEAR, b = FAR * FAR;
    vec near_sum = m[1] + m[2], near_difference = NEAR * (m[1] - m[2]);
    vec far_sum = m[3] + m[4], far_difference = FAR * (m[3] - m[4]);
    o[0] = m[0] + near_sum + far_sum;
    o[1] = near_difference + far_difference;
    o[2] = a * near_sum + b * far_sum;
    o[3] = a * near_difference + b * far_difference + m[5];
}

static void input_tile(const number *in, long stride, number *v) {
    for (int c = 0; c < C; c += LANES) {
        vec columns[N][N], d[N], r[N];
        for (int j = 0; j < N; j++) {
            for (int i = 0; i < N; i++) d[i] = load_number(in + (i * stride + j) * C + c);
            input_1d(d, r);
            for (int i = 0; i < N; i++) columns[i][j] = r[i];
        }
        for (int i = 0; i < N; i++) {
            input_1d(columns[i], r);
            for (int j = 0; j < N; j++) store_number(v + (i * N + j) * TILES * C + c, r[j]);
        }
    }
}

/* The tile whose first input is (y, x), which may lie outside of the map: zeros there. */
static void input_tile_at(const number *in, long h, long w, long y, long x, number *v) {
    if (y >= 0 && x >= 0 && y + N <= h && x + N <= w) {
        input_tile(in + (y * w + x) * C, w, v);
        return;
    }
    number padded[N][N][C] = {};
    for (long i = 0; i < N; i++)
        for (long j = 0; j < N; j++)
            if (y + i >= 0 && y + i < h && x + j >= 0 && x + j < w)
                memcpy(padded[i][j], in + ((y + i) * w + x + j) * C, sizeof padded[i][j]);
    input_tile(padded[0][0], N, v);
}

/* Channels c … c + LANES - 1 of LR pixel (y, x) to their places in the SR image of 3 x 4h x 4w. */
static inline void store_shuffled(float *out, vec z, int c, long h, long w, long y, long x) {
    for (int k = 0; k < LANES; k += 4) {
        long colour = (c + k) / 16, row = (c + k) % 16 / 4;
        memcpy(out + ((colour * h + y) * 4 + row) * 4 * w + 4 * x, (float *)&z + k, 4 * sizeof(float));
    }
}

static void output_tile_at(const float *m, const float *bias, const number *other, void *out, long h, long w, long y,
                           long x, int then) {
    int rows = h - y < OUT ? h - y : OUT, columns = w - x < OUT ? w - x : OUT;
    for (int c = 0; c < C; c += LANES) {
        vec half[OUT][N], d[N], o[OUT];
        for (int j = 0; j < N; j++) {
            for (int i = 0; i < N; i++) d[i] = load(m + (i * N + j) * TILES * C + c);
            output_1d(d, o);
            for (int i = 0; i < OUT; i++) half[i][j] = o[i];
        }
        for (int i = 0; i < rows; i++) {
            long at = ((y + i) * w + x) * C + c;
            output_1d(half[i], o);
            for (int j = 0; j < columns; j++, at += C) {
                vec z = o[j] + load(bias + c);
                if (then == SILU) z = z * sigmoid(z);
                if (then == ATTENTION) z = (z + load_number(other + at)) * (sigmoid(z) - .5f);
                if (then == ADD) z = z + load_number(other + at);
                if (then == SHUFFLE) store_shuffled(out, z, c, h, w, y + i, x + j);
                else store_number((number *)out + at, z);
            }
        }
    }
}

/* in, other, out: H x W x C; out may be other, not in. u: POINTS x C x C. bias: C. */
void convolve(const number *in, const number *u, const float *bias, const number *other, void *out, long h, long w,
              int then, int threads) {
    long tile_rows = (h + OUT - 1) / OUT, tile_columns = (w + OUT - 1) / OUT;
    long strips = (tile_columns + TILES - 1) / TILES;
#pragma omp parallel for schedule(dynamic, 8) num_threads(threads)
    for (long job = 0; job < tile_rows * strips; job++) {
        number v[POINTS][TILES][C] __attribute__((aligned(64)));
        float m[POINTS][TILES][C] __attribute__((aligned(64)));
        long y = job / strips * OUT, first = job % strips * TILES;
        long tiles = tile_columns - first < TILES ? tile_columns - first : TILES;
        for (long t = 0; t < tiles; t++) input_tile_at(in, h, w, y - 1, (first + t) * OUT - 1, v[0][t]);
        for (int k = 0; k < POINTS; k++)
            for (long t = 0; t < tiles; t += ROWS) product(v[k][t], u + k * C * C, m[k][t]);
        for (long t = 0; t < tiles; t++)
            output_tile_at(m[0][t], bias, other, out, h, w, y, (first + t) * OUT, then);
    }
}
"""


@functools.cache
def compiled(precision):
    """Return the C function `convolve`. Raises RuntimeError without a compiler, or if it does not take the source."""
    candidates = (shutil.which(name) for name in (os.environ.get("CC", "cc"), "gcc", "clang"))
    compiler = next(filter(None, candidates), None)
    if compiler is None:
        raise RuntimeError("needs a C compiler; install gcc or clang, or take the backend fast")
    with tempfile.TemporaryDirectory() as folder:
        source, library = Path(folder, "convolve.c"), Path(folder, "convolve.so")
        source.write_text(SOURCE, encoding="utf-8")
        values = {name.upper(): number for name, number in THEN.items()}
        values |= {"CHANNELS": CHANNELS, "NEAR": f"{NEAR}f", "FAR": f"{FAR}f", precision.upper(): 1}
        defines = [f"-D{name}={value}" for name, value in values.items()]
        options = ["-O3", "-march=native", "-fopenmp", "-shared", "-fPIC", *defines]
        run = subprocess.run([compiler, *options, str(source), "-o", str(library)], capture_output=True, text=True)
        if run.returncode:
            errors = [line.rpartition("error:")[2].strip() for line in run.stderr.splitlines() if "error:" in line]
            raise RuntimeError(f"{compiler} cannot compile it: {(errors or ['it does not say why'])[0]}")
        convolve = ctypes.CDLL(str(library)).convolve
    pointer, number = ctypes.c_void_p, ctypes.c_long
    convolve.argtypes = [pointer] * 5 + [number, number, ctypes.c_int, ctypes.c_int]
    convolve.restype = None
    return convolve


def transformed(weight, dtype):
    """Return 48 x 48 x 3 x 3 kernels as 36 matrices in the order that `convolve` reads."""
    points = (0.0, NEAR, -NEAR, FAR, -FAR)
    rows = [[0.0, 0.0, 1.0]]  # of infinity
    for point in reversed(points):
        scale = 1.0
        for other in points:
            scale *= point - other if other != point else 1.0
        rows.insert(0, [1 / scale, point / scale, point**2 / scale])
    g = torch.tensor(rows, dtype=torch.float64)  # 6 x 3
    u = torch.einsum("ia,ocab,jb->ijco", g, weight.double(), g).float().reshape(36, CHANNELS, CHANNELS)
    if dtype == torch.bfloat16:  # in pairs of input channels
        u = u.view(36, CHANNELS // 2, 2, CHANNELS).transpose(2, 3)
    return u.to(dtype).contiguous()


class Conv3x3(nn.Module):
    """3x3 convolution, zero padding 1, with bias."""

    def __init__(self, c_in, c_out):
        super().__init__()
        self.conv = nn.Conv2d(c_in, c_out, 3, padding=1)


class PixelAttention(nn.Module):
    """Three convolutions; the last one's output carries the features and weighs them."""

    def __init__(self, channels):
        super().__init__()
        self.conv_1 = Conv3x3(channels, channels)
        self.conv_2 = Conv3x3(channels, channels)
        self.conv_3 = Conv3x3(channels, channels)


class RepBlock(nn.Module):
    """Feature extraction followed by pixel attention."""

    def __init__(self, channels):
        super().__init__()
        self.feature_extractor = Conv3x3(channels, channels)
        self.pixel_attention = PixelAttention(channels)


class NanoSR_winograd(nn.Module):
    """NanoSR for inference on CPUs: 1 x 3 x H x W in [0, 1] gives 1 x 3 x 4H x 4W, about [0, 1] (not clamped), float32.

    Raises RuntimeError if the C source cannot be compiled here.
    """

    def __init__(self, precision="float32"):
        super().__init__()
        self.dtype = getattr(torch, precision)
        self.convolve = compiled(precision)
        self.register_buffer("mean", torch.tensor(RGB_MEAN).view(1, 3, 1, 1), persistent=False)
        self.conv_1 = Conv3x3(3, CHANNELS)
        for number in range(1, 7):
            self.add_module(f"block_{number}", RepBlock(CHANNELS))
        self.conv_2 = Conv3x3(CHANNELS, CHANNELS)
        self.conv_cat = nn.Conv2d(4 * CHANNELS, CHANNELS, 1)
        self.upsampler = nn.Sequential(nn.Conv2d(CHANNELS, 3 * SCALE**2, 3, padding=1), nn.PixelShuffle(SCALE))
        self.arena = torch.empty(0, dtype=self.dtype)  # memory of the maps, kept: fresh pages cost time in every pass
        self.register_load_state_dict_post_hook(lambda module, _keys: module._arrange())
        self._arrange()

    @torch.no_grad()
    def _arrange(self):
        """Transform the kernels; `conv_2` takes over its share of `conv_cat`, which follows it."""
        share = self.conv_cat.weight.flatten(1)[:, CHANNELS : 2 * CHANNELS]
        self.kernels = {}
        for module in self.modules():
            if isinstance(module, nn.Conv2d) and module.weight.shape == (CHANNELS, CHANNELS, 3, 3):
                weight, bias = module.weight, module.bias
                if module is self.conv_2.conv:
                    weight = torch.einsum("om,mcij->ocij", share.double(), weight.double())
                    bias = self.conv_cat.bias + share @ bias
                self.kernels[module] = transformed(weight, self.dtype), bias
        self.conv_1.to(memory_format=torch.channels_last)

    @torch.no_grad()
    def forward(self, lr):
        if lr.shape[0] != 1 or lr.device.type != "cpu":
            raise RuntimeError("takes one image, on the CPU; for a GPU take the backend fast")
        height, width = lr.shape[2:]
        f0 = self.conv_1.conv(((lr - self.mean) * IMG_RANGE).contiguous(memory_format=torch.channels_last))
        # What counts operators or modules shall see the convolutions of the plain network.
        if torch.jit.is_tracing() or self.conv_cat._forward_hooks:
            out_6, out_1, o1 = self._blocks(f0, self._plain, [None] * 4)
            return self.upsampler(self.conv_cat(torch.cat([f0, self.conv_2.conv(out_6), out_1, o1], dim=1)))
        size = 4 * height * width * CHANNELS
        if self.arena.numel() < size:
            self.arena = torch.empty(size, dtype=self.dtype)
        maps = self.arena[:size].view(4, 1, height, width, CHANNELS).permute(0, 1, 4, 2, 3)
        f0 = f0.to(self.dtype)
        out_6, out_1, o1 = self._blocks(f0, self._winograd, maps)
        f = self._weighted_sum(f0, out_1, o1, out=maps[3])
        f = self._winograd(self.conv_2.conv, out_6, f, "add", f)
        return self._winograd(self.upsampler[0], f, torch.empty(1, 3, SCALE * height, SCALE * width), "shuffle")

    def _blocks(self, f0, conv, maps):
        """Return out_6, out_1 and block 6's o1; `conv(module, x, out, then, other)` runs the convolutions."""
        first, a, b, c = maps  # 1 x 48 x H x W each, channels last
        out_1, _ = self._block(self.block_1, f0, first, a, c, conv)
        x, _ = self._block(self.block_2, out_1, b, a, c, conv)
        x, _ = self._block(self.block_3, x, a, b, c, conv)
        x, _ = self._block(self.block_4, x, b, a, c, conv)
        x, _ = self._block(self.block_5, x, a, b, c, conv)
        out_6, o1 = self._block(self.block_6, x, b, a, c, conv)
        return out_6, out_1, o1

    @staticmethod
    def _block(block, x, features, o1, o2, conv):
        """Return (attended features, activated output of the attention's first convolution), in `features` and `o1`."""
        attention = block.pixel_attention
        features = conv(block.feature_extractor.conv, x, features)
        o1 = conv(attention.conv_1.conv, features, o1, "silu")
        o2 = conv(attention.conv_2.conv, o1, o2, "silu")
        return conv(attention.conv_3.conv, o2, features, "attention", features), o1

    @staticmethod
    def _plain(module, x, _out, then="nothing", other=None):
        z = module(x)
        if then == "silu":
            return F.silu(z)
        return (z + other) * (torch.sigmoid(z) - 0.5) if then == "attention" else z

    def _winograd(self, module, x, out, then="nothing", other=None):
        u, bias = self.kernels[module]
        pointers = (tensor.data_ptr() for tensor in (x, u, bias, out if other is None else other, out))
        self.convolve(*pointers, *x.shape[2:], THEN[then], torch.get_num_threads())
        return out

    def _weighted_sum(self, f0, out_1, o1, out):
        """`conv_cat` of its three inputs beside conv_2's output, without concatenating them."""
        parts = self.conv_cat.weight.flatten(1).to(self.dtype).split(CHANNELS, dim=1)
        total, *features = (x.permute(0, 2, 3, 1).view(-1, CHANNELS) for x in (out, f0, out_1, o1))  # HW x 48
        torch.mm(features[0], parts[0].t(), out=total)
        total.addmm_(features[1], parts[2].t()).addmm_(features[2], parts[3].t())
        return out
