from collections.abc import Sequence
from typing import Any

class Tensor:
    """Contiguous memory on a device: speaks DLPack and the buffer protocol."""

    @staticmethod
    def empty(shape: Sequence[int], dtype: str) -> Tensor:
        """Uninitialised memory of the CPU, 64-byte aligned. dtype: f32, f16, i32, i64 or u8."""
    @staticmethod
    def zeros(shape: Sequence[int], dtype: str) -> Tensor:
        """As `empty`, every byte 0."""
    @staticmethod
    def from_dlpack(array: Any) -> Tensor:
        """The memory of a C-contiguous CPU array of another library, shared, not copied."""
    @staticmethod
    def of_memory(
        pointer: int, shape: Sequence[int], dtype: str, owner: object, gpu: int = -1
    ) -> Tensor:
        """The memory at pointer, which `owner` holds for as long as the tensor refers to it.
        gpu: the number of the GPU that it is of, −1 for the CPU. No function here reads a GPU's."""
    def rows(self, start: int, stop: int) -> Tensor:
        """Rows start…stop − 1 along the first axis, 0 ≤ start < stop ≤ shape[0]: the same memory,
        kept alive by the result."""
    @property
    def pointer(self) -> int: ...
    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def dtype(self) -> str: ...
    @property
    def device(self) -> str: ...
    @property
    def nbytes(self) -> int: ...
    def __dlpack__(self, **options: Any) -> Any: ...
    def __dlpack_device__(self) -> tuple[int, int]: ...
    def __buffer__(self, flags: int, /) -> memoryview: ...

class TorchGenerator:
    """The values of torch.randn with a CPU generator of that seed, 0…2⁶⁴ − 1."""

    def __init__(self, seed: int) -> None: ...
    def normals(self, out: Tensor, image: int) -> None:
        """Fills image number `image` of out, f32 [B, …], with the generator's next draw."""

def philox_normals(out: Tensor, seeds: Sequence[int], draw: int) -> None:
    """Fills out, f32 [B, …], with draw number `draw`, 0…2³² − 1, of each image's seed: torch.randn
    on CUDA."""

def brownian(out: Tensor, seeds: Sequence[int], sigma: float) -> None:
    """Fills out, f32 [B, …], with W(sigma) of each image's seed's Brownian path; sigma is 0 or
    from 2⁻¹⁶ to 2¹⁶. W(0) = 0, and W has the variance sigma."""

def uniform(out: Tensor, seeds: Sequence[int], draw: int) -> None:
    """Fills out, f32 [B, C, h, w], with draw number `draw`, 0…2³² − 1, of each image's seed; so do
    the other kinds of noise below. `sdfast.noise` says their laws."""

def laplacian(out: Tensor, seeds: Sequence[int], draw: int) -> None: ...
def pyramid(out: Tensor, seeds: Sequence[int], draw: int) -> None: ...
def highres_pyramid(out: Tensor, seeds: Sequence[int], draw: int) -> None: ...
def perlin(out: Tensor, seeds: Sequence[int], draw: int) -> None: ...
def prepare(latent: Tensor, timestep: Tensor, x: Tensor, sigma: float, t: float) -> None:
    """latent [G·B, …] = x [B, …] / √(σ² + 1), G (1 or 2) times over; timestep [G·B] = t. Where
    latent has more channels than x, those beyond stay as they are."""

def guide(
    denoised: Tensor,
    predicted: Tensor,
    x: Tensor,
    sigma: float,
    guidance: float,
    prediction: str,
    rescale: float = 0.0,
) -> None:
    """denoised [B, …] from the network's output [G·B, …] (unguided rows first) and x [B, …].
    prediction: epsilon, v_prediction or sample. rescale: φ of CFG rescale, 0…1, of each image's v
    (arXiv:2305.08891, §3.4). With one row for each image there is nothing to guide."""

def combine(out: Tensor, coefficients: Sequence[float], sources: Sequence[Tensor]) -> None:
    """out = Σ cᵢ · sourceᵢ in one pass over memory; out may be one of the sources."""

def blend(out: Tensor, x: Tensor, kept: Tensor, mask: Tensor) -> None:
    """out = mask · x + (1 − mask) · kept, all [B, C, h, w] but mask [B, 1, h, w]; out may be x or
    kept."""

def cut_tile(tile: Tensor, whole: Tensor, top: int, left: int) -> None:
    """tile = the part of whole that begins at row top and column left. Both u8 [B, H, W, C] or
    f32 [B, C, h, w]; so is the tile below."""

def add_tile(
    total: Tensor,
    tile: Tensor,
    top: int,
    left: int,
    rows: Sequence[float],
    columns: Sequence[float],
) -> None:
    """total, f32 with the tile's axes, from row top and column left on, += rowsᵧ · columnsₓ · tile:
    one weight for each row and each column of the tile. Exact for u8 and weights k / 256."""

def write_sum(out: Tensor, total: Tensor) -> None:
    """out = total; clamped and rounded, halves up, where out is u8."""
