from models.team01_Plain import Plain


class Nested(Plain):
    pass
