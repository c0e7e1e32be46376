import einops_of_nowhere

from models.team01_Plain import Plain


class Needy(Plain):
    forward = einops_of_nowhere.rearranged
