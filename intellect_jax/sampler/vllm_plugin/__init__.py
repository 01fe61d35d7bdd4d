"""What runs inside vLLM's processes, in vLLM's own environment: reading our published versions into its model.

Plain Python with numpy and PyTorch, no JAX. ``extension`` is what vLLM imports, ``engine`` its weight transfer backend,
``reload`` the way into the model. vLLM finds this package through a folder that holds nothing but a link to it.
What both sides must know stands here, where either can import it.
"""

BACKEND = "intellect_jax"  # under which vLLM knows our weight transfer
EXPECTED = "tensors.json"  # beside the model's config.json: name → [dtype, shape] of every tensor of a version
NAME_VARIABLE = "INTELLECT_JAX_SERVER"  # of a server, the same for all its workers and again when it is started again
