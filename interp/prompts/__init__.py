"""What prompts are made of: `names` and templates, `needles` in filler, `scenes` of shapes, words that are one token
(`vocabulary`), and seeded draws (`draw`)."""
