"""The edge graph of a tower (`nodes`), what runs along its edges (`changes`, `carries`, `running`) and what each edge
is worth (`slopes`, `estimates`, `exact`, `choose`)."""
