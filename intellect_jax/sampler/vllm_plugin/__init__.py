"""What runs inside vLLM's processes, in vLLM's own environment: reading our published versions into its model.

Plain Python with numpy and PyTorch, no JAX. ``extension`` is what vLLM imports, ``engine`` its weight transfer backend,
``reload`` the way into the model. vLLM finds this package through a folder that holds nothing but a link to it.
"""
