"""What the scripts share, a room for each subject. A room imports only from those before it:

errors, paths → text → processes → settings → artifacts → prompts → endpoint → download → model → data → training →
merging → serving → client → evaluation → chat
"""

__version__ = "0.1.0"
