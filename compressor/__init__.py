"""The build half: from a fine-tuned checkpoint to bundles that meet a budget.

``compressor.recipe`` reads recipes, ``compressor.pipeline.run`` runs them. Importing this package
loads neither torch nor a runtime.
"""

__all__: list[str] = []
