"""The product of an error with binary feedback, in native code where it was built, in torch expressions elsewhere."""

from torchdfa.ops.native import PATHS, choose, path, why_not_native
from torchdfa.ops.product import packed_product, seeded_product

__all__ = ["PATHS", "choose", "packed_product", "path", "seeded_product", "why_not_native"]
