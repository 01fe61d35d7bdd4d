"""``python -m launch plan``: does a step fit hardware that is not there, how long will it take, what bounds it.

``targets`` are datasheet numbers; ``child`` compiles the real step in a process of its own; ``hlo`` and ``cost`` read
the compiled program; ``model_flops``, ``memory`` and ``roofline`` turn that into a verdict, ``search`` tries meshes and
remat policies, ``fleet`` simulates the asynchronous loop, ``report`` prints. Only ``child`` and what it alone imports
need JAX.
"""
