"""Versions over HTTP: the trainer sends each chunk once, and samplers pass it on to each other.

``origin`` is the trainer's side, ``intake`` a sampler's. A version comes into a folder of the sampler's own machine
that looks like the weight store, and is read from there as from the store. Standard library and numpy only: it runs
inside vLLM's processes too.

    parcel    what travels: the files of one manifest, cut into chunks
    board     who has which chunk, and who gets which one from whom
    server    files and answers over HTTP, of the trainer and of every sampler
    client    one request with time limits
    download  one parcel into a folder of the reader's, by several streams
    cache     that folder: whole versions, how long they stay, one process at a time
    shelf     what a sampler passes on
    fetcher   which parcels lead to a version by the fewest bytes
"""
