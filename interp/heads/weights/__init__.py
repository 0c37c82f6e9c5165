"""What heads are by their weights alone: copying and composition (`head_circuits`), overlap of their subspaces
(`head_overlap`), what each direction reads and writes (`head_directions`), chains of three (`virtual_heads`).
"""
