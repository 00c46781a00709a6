"""What prepares published data sets, one file each; the catalogue knows them by name.

A module here imports tensorflow-datasets, which takes a second: `isa_tf.data.builder` does so
when one is asked for.
"""
