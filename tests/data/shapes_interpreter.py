"""An independent reading of Shapes expressions, for tests only.

It parses the text from left to right with its own word tables and evaluates it on COCO annotation
records. It shares no code with the generator, so an error of either one shows up as a disagreement.
"""

import math

MARGIN = 0.06

SYNONYMS = {
    **{"disc": "circle", "box": "square", "hoop": "ring", "little": "small", "tiny": "small"},
    **{"midsize": "medium", "big": "large", "huge": "large"},
    **{"grey": "gray", "violet": "purple", "turquoise": "cyan"},
}
NOUNS = set("object thing shape item figure one".split())
SHAPES = set("circle disc square box triangle star ring hoop cross".split())
PLURALS = {word + ("es" if word[-1] in "xs" else "s"): word for word in NOUNS | SHAPES}
SIZES = ("small", "medium", "large")
ADJECTIVES = {word: "size" for word in (*SIZES, "little", "tiny", "midsize", "big", "huge")}
for _word in "red orange yellow green cyan blue purple gray grey violet turquoise".split():
    ADJECTIVES[_word] = "color"
NUMBERS = {"two": 2, "three": 3, "four": 4}
ORDINALS = {"first": 1, "second": 2, "third": 3, "fourth": 4}

# A direction is (axis, sign): rank 1 is the smallest sign * coordinate.
LEFT, RIGHT, TOP, BOTTOM = (0, 1), (0, -1), (1, 1), (1, -1)
SIDES = {"left": LEFT, "right": RIGHT}
SIDES.update({"top": TOP, "upper": TOP, "bottom": BOTTOM, "lower": BOTTOM})
MOST = {"leftmost": LEFT, "rightmost": RIGHT, "topmost": TOP, "highest": TOP}
MOST.update({"bottommost": BOTTOM, "lowest": BOTTOM})
SIZE_MOST = {"largest": -1, "biggest": -1, "smallest": 1, "tiniest": 1}
RELATIONS = {"above": TOP, "over": TOP, "below": BOTTOM, "under": BOTTOM}
for _side, _direction in (("left", LEFT), ("right", RIGHT)):
    for _phrase in ("to the {} of", "on the {} side of", "on the {} of", "{} of"):
        RELATIONS[_phrase.format(_side)] = _direction
DISTANCES = {"closest to": 1, "nearest to": 1, "nearest": 1}
DISTANCES.update({"farthest from": -1, "furthest from": -1})

PREFIXES = ("please find", "please select", "show me", "pick out", "look for", "find", "select")
PREFIXES += ("segment", "mark", "highlight", "locate")
EXCEPT = ("except for", "except", "but", "apart from", "other than", "excluding", "aside from")
AND = ("and", "as well as", "together with", "along with", "plus")
PLURAL_HEADS = ("all of the", "all the", "all", "each of the", "every one of the")
SINGULAR_HEADS = ("every single", "every", "each")
VERBS = ("lying", "located", "placed", "sitting", "positioned")
PICTURES = ("image", "picture", "scene")


class Odd(Exception):
    """The expression is ambiguous, half true or presupposes something false."""


class Thing:
    """What an expression needs to know about one annotation."""

    def __init__(self, annotation, categories, image):
        x, y, w, h = annotation["bbox"]
        self.id = annotation["id"]
        self.shape = categories[annotation["category_id"]]
        self.color = annotation["attributes"]["color"]
        self.size = annotation["attributes"]["size"]
        self.pixels = (x + w / 2, y + h / 2)
        self.place = (self.pixels[0] / image["width"], self.pixels[1] / image["height"])


class Interpreter:
    """Reads one expression about one image; ``targets()`` is the set of annotation ids."""

    def __init__(self, sentence, annotations, categories, image):
        self.words = sentence.split()
        self.things = [Thing(annotation, categories, image) for annotation in annotations]
        self.short_side = min(image["width"], image["height"])

    def take(self, *phrases):
        """Consume the first of the phrases that comes next; "" when none does."""
        for phrase in phrases:
            words = phrase.split()
            if self.words[: len(words)] == words:
                del self.words[: len(words)]
                return phrase
        return ""

    def take_from(self, table):
        """Consume a key of ``table`` and return its value; None when the next word is another."""
        if self.words and self.words[0] in table:
            return table[self.words.pop(0)]
        return None

    def need(self, *phrases):
        found = self.take(*phrases)
        assert found, f"expected one of {phrases}, found {self.words}"
        return found

    def targets(self):
        self.take(*PREFIXES)
        if self.take("counting from the"):
            side = self.take_from(SIDES)
            self.need("the")
            rank = self.take_from(ORDINALS)
            result = self.ranked(self.noun_phrase()[0], side, rank, rank)
        else:
            self.take("both")
            result = self.listing()
        self.take(*(f"in the {picture}" for picture in PICTURES))
        assert not self.words, f"words left over: {self.words}"
        return {thing.id for thing in result}

    def listing(self):
        """One group, or several joined by commas (dropped in the text) and a conjunction."""
        groups = [self.group()]
        while self.words and self.words[0] != "in":
            self.take(*AND)
            groups.append(self.group())
        if not any(groups):
            return []
        if not all(groups):
            raise Odd("only some of the list exist")
        union = {thing.id: thing for group in groups for thing in group}
        if len(union) < sum(map(len, groups)):
            raise Odd("the list names an object twice")
        return list(union.values())

    def group(self):
        """Head, noun phrase and what follows it."""
        if self.take("exactly", "the group of", "the set of"):
            number = self.take_from(NUMBERS)
            return self.counted(self.noun_phrase()[0], number)
        head = self.take(*PLURAL_HEADS, *SINGULAR_HEADS)
        if head:
            things, plural, excepted = self.noun_phrase()
            assert plural == (head in PLURAL_HEADS)
            return self.tail(things, True, excepted)
        if self.take("the only", "the single"):
            things, plural, _ = self.noun_phrase()
            assert not plural
            return self.number_agrees(things, False)
        self.take("the")
        return self.after_article()

    def after_article(self):
        """Counts, superlatives, ordinals and plain noun phrases."""
        number = self.take_from(NUMBERS)
        word = self.words[0]
        if word in SIZE_MOST:
            sign = SIZE_MOST[self.words.pop(0)]
            self.take("of the", "one of the")
            return self.sized(self.noun_phrase()[0], sign)
        if word in MOST:
            side = MOST[self.words.pop(0)]
            number = number or self.take_from(NUMBERS) or 1
            self.take("of the")
            return self.ranked(self.noun_phrase()[0], side, 1, number)
        if word in ORDINALS:
            rank = ORDINALS[self.words.pop(0)]
            if self.take("from the"):
                side = self.take_from(SIDES)
                self.need("among the")
                return self.ranked(self.noun_phrase()[0], side, rank, rank)
            things = self.noun_phrase()[0]
            self.need("from the")
            return self.ranked(things, self.take_from(SIDES), rank, rank)
        if word in SIDES:
            side = SIDES[self.words.pop(0)]
            self.take("one of the")
            things = self.noun_phrase()[0]
            if things and len(things) != 2:
                raise Odd("two objects are needed to speak of the left one")
            return self.ranked(things, side, 1, 1)
        things, plural, excepted = self.noun_phrase()
        if self.take("farthest to the", "furthest to the"):
            return self.ranked(things, self.take_from(SIDES), 1, number or 1)
        if number:
            return self.counted(things, number)
        return self.tail(things, plural, excepted)

    def adjective(self):
        """Consume a size or colour word: (attribute name, value)."""
        word = self.words.pop(0)
        return ADJECTIVES[word], SYNONYMS.get(word, word)

    def noun_phrase(self):
        """Adjectives, noun and a clause: (things, is plural, things excluded by "not" or None)."""
        wanted, colors = {}, []
        while self.words[0] in ADJECTIVES:
            name, value = self.adjective()
            assert name not in wanted
            if name == "color" and self.words[0] == "and":
                self.words.pop(0)
                colors.append(value)
            else:
                wanted[name] = value
        word = self.words.pop(0)
        plural = word in PLURALS
        noun = PLURALS.get(word, word)
        if noun not in NOUNS:
            assert noun in SHAPES, noun
            wanted["shape"] = SYNONYMS.get(noun, noun)
        if colors:
            sets = [self.select({**wanted, "color": c}) for c in (*colors, wanted["color"])]
            if any(sets) and not all(sets):
                raise Odd("only some of the colours exist")
            return [thing for part in sets for thing in part], plural, None
        things, excepted = self.select(wanted), None
        clause = self.words[:2]
        if clause and clause[0] in ("that", "which") and len(self.words) > 2:
            assert clause[1] == ("are" if plural else "is") or self.words[2] not in ADJECTIVES
            if self.words[2] == "not":
                del self.words[:3]
                name, value = self.adjective()
                excepted = [thing for thing in things if getattr(thing, name) == value]
            elif self.words[2] in ADJECTIVES:
                del self.words[:2]
                name, value = self.adjective()
                things = [thing for thing in things if getattr(thing, name) == value]
        return things, plural, excepted

    def select(self, wanted):
        return [t for t in self.things if all(getattr(t, k) == v for k, v in wanted.items())]

    def tail(self, things, plural, excepted):
        """Negated clause, exception, relation or region after a noun phrase."""
        if excepted is not None:
            if things and not excepted:
                raise Odd("nothing to leave out")
            return [thing for thing in things if thing not in excepted]
        if self.take(*EXCEPT, "besides"):
            return self.without_exception(things)
        if self.take("that is", "which is", "that are", "which are"):
            rank = self.take_from(ORDINALS)
            if rank:
                self.need("from the")
                return self.ranked(things, self.take_from(SIDES), rank, rank)
        self.take(*VERBS)
        for preposition, noun in (("in", "half"), ("in", "part"), ("on", "side")):
            for word in SIDES:
                phrase = f"{preposition} the {word} {noun}"
                words = phrase.split()
                following = self.words[len(words) : len(words) + 3]
                anchored = following[:2] == ["of", "the"] and following[2] not in PICTURES
                if self.words[: len(words)] == words and not anchored:
                    self.take(phrase)
                    self.take(*(f"of the {picture}" for picture in PICTURES))
                    axis, sign = SIDES[word]
                    return self.beyond(things, plural, axis, sign, 0.5)
        relation = self.take(*RELATIONS)
        if relation:
            anchor = self.anchor()
            axis, sign = RELATIONS[relation]
            if things and anchor:
                others = [thing for thing in things if thing is not anchor]
                if not others:
                    raise Odd("an object related to itself")
                return self.beyond(others, plural, axis, sign, anchor.place[axis])
            return []
        distance = self.take(*DISTANCES)
        if distance:
            return self.at_distance(things, self.anchor(), DISTANCES[distance])
        return self.number_agrees(things, plural)

    def anchor(self):
        self.need("the")
        things, plural, _ = self.noun_phrase()
        assert not plural
        if len(things) > 1:
            raise Odd("several anchors")
        return things[0] if things else None

    def without_exception(self, things):
        self.need("the")
        if self.words[0] in MOST:
            side = MOST[self.words.pop(0)]
            self.need("one")
            excepted = self.ranked(things, side, 1, 1)
        else:
            selected, plural, _ = self.noun_phrase()
            excepted = [thing for thing in things if thing in selected]
            if things and plural != (len(excepted) > 1):
                raise Odd("one against ones")
        if things and not excepted:
            raise Odd("nothing to leave out")
        return [thing for thing in things if thing not in excepted]

    def number_agrees(self, things, plural):
        if things and plural != (len(things) > 1):
            raise Odd(f"{len(things)} objects for a plural={plural} expression")
        return things

    def counted(self, things, number):
        return things if len(things) == number else []

    def ranked(self, things, side, first, last):
        """Those from rank ``first`` to ``last``, counted from a side (axis, sign)."""
        axis, sign = side
        if not things:
            return []
        if len(things) < last:
            return []
        if len(things) == 1 or (last > first and len(things) == last):
            raise Odd("nothing to choose")
        places = sorted((sign * thing.place[axis], thing.id, thing) for thing in things)
        chosen, rest = places[first - 1 : last], places[: first - 1] + places[last:]
        if any(abs(a[0] - b[0]) < MARGIN for a in chosen for b in rest):
            raise Odd("too close to call")
        return [entry[2] for entry in chosen]

    def sized(self, things, sign):
        if not things:
            return []
        ranks = [sign * SIZES.index(thing.size) for thing in things]
        if len(things) < 2 or ranks.count(min(ranks)) > 1:
            raise Odd("no single largest or smallest")
        return [things[ranks.index(min(ranks))]]

    def beyond(self, things, plural, axis, sign, origin):
        offsets = [sign * (origin - thing.place[axis]) for thing in things]
        if any(abs(offset) < MARGIN for offset in offsets):
            raise Odd("too close to call")
        found = [thing for thing, offset in zip(things, offsets) if offset > 0]
        return self.number_agrees(found, plural)

    def at_distance(self, things, anchor, sign):
        if not things or anchor is None:
            return []
        scored = sorted(
            (sign * math.dist(thing.pixels, anchor.pixels), thing.id, thing)
            for thing in things
            if thing is not anchor
        )
        if len(scored) < 2 or scored[1][0] - scored[0][0] < MARGIN * self.short_side:
            raise Odd("no clear winner")
        return [scored[0][2]]
