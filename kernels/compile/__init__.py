"""Every kernel at every documented shape, through the real TPU compiler: `python -m kernels.compile --target v6e`.

`cases` names the programs, `run` compiles them and judges their memory, `command` is the command line. A process
compiles for one target, whose environment is set before jax is imported.
"""

OPS = ("paged_decode", "chunked_prefill", "kv_write", "gather_pages", "scatter_pages")
