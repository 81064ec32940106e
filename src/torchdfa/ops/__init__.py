"""The product of an error with binary feedback, and a weight's update, in native code or in torch expressions."""

from torchdfa.ops.native import PATHS, choose, path, why_not_native
from torchdfa.ops.product import packed_product, seeded_product
from torchdfa.ops.update import sgd_update

__all__ = ["PATHS", "choose", "packed_product", "path", "seeded_product", "sgd_update", "why_not_native"]
