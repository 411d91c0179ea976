"""Recipe of the codec: closed form first, then training of prior and transform with Lightning."""
