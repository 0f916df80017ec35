"""HQ-ACF (paper 3.1, Fig. 3): from detection data sets to PERSONA.

    sources -> [images/] -> detect -> [boxes/] -> cut -> [crops/] -> score -> [scores/] -> select -> [persona/]

Every step reads the files of the one before and writes its own, shard by shard; only `select` looks at all of them.
"""
