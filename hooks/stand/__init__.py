"""The places where we stand while a model runs: its attention call (`interface`, `boundary` outside transformers'
interface), what a call is (`call`, `part`), how heads attend in it (`attention`: head programs, `program`, which are
changes of the model's own softmax, `softmax`, `near`, or take its place), the borders of modules (`ports`), the answer
(`output`)."""
