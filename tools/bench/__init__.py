"""What `tools.benchmark`, `tools.beside_torch` and their like measure with.

How things are measured:

* `processes`: fresh processes that measure, and contestants that are called in turn.
* `timing`: warm calls, one after the other or in rounds; ratios; the rates of the machine.
* `memory`: what a call holds at its highest; what cannot fit.
* `machine`: what it was measured on.

What is measured (cases):

* `contexts`: context modules, and the attention proper.
* `segmenters`, `steps`: whole models; the training step that `experiments.train` runs.
* `detector`: the parts of Mask R-CNN.
* `ours`, `theirs`: one network in isa_tf and in PyTorch; `beside`: what both are told.
* `torch_networks`: those of PyTorch that need nothing else.
* `deploy`, `deploy_files`: the formats that leave the package.
* `measure`: one case in this process; what a fresh process is started with.
* `elsewhere`, `device`: what is packed with TensorFlow, and timed where there is a GPU and none:
  command lines, of `packed` programs, by processes `on_jax` and `on_torch` of `jobs`.

What becomes of the figures:

* `results`: a stored result, .json, .md and .csv, and its reader; `costs`: the table of what things
  cost; `pictures` of them; `comparison` of two stored results.

The first four, `theirs`, and what runs on the device import no TensorFlow, which a process of
PyTorch would carry. Nothing else here has flags, and nothing in the library or the experiments
calls it.
"""
