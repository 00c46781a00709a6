"""One page that shows what an evaluation found, and where it went wrong."""

from isa_tf.report.images import ImageScore, ImageScores, choose, table
from isa_tf.report.instances import InstanceScore, InstanceScores, instance_page, instance_table
from isa_tf.report.page import page
from isa_tf.report.parts import short_names

__all__ = [
    "ImageScore",
    "ImageScores",
    "InstanceScore",
    "InstanceScores",
    "choose",
    "instance_page",
    "instance_table",
    "page",
    "short_names",
    "table",
]
