"""One page that shows what an evaluation found, and where it went wrong."""

from isa_tf.report.images import ImageScore, ImageScores, choose, table
from isa_tf.report.page import page, short_names

__all__ = ["ImageScore", "ImageScores", "choose", "page", "short_names", "table"]
