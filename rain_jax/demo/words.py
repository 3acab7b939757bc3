"""The words of the demo world, from which `rain_jax.demo.world` builds every text."""

VILLAGES = ("Oakrim", "Velda", "Tarn", "Brill", "Sorrel", "Mossby", "Harrow", "Quill")
PEOPLE = ("miller", "baker", "warden", "healer", "smith", "shepherd", "weaver", "elder")
PLACES = ("gate", "mill", "bridge", "well", "tower", "stable", "garden", "market")

USE_VERBS = ("take", "use", "bring", "grab", "hide", "carry", "ready", "fetch", "test", "keep")
SAFE_VERBS = ("return", "report", "refuse", "bury", "surrender", "avoid", "destroy", "reject")
PLAIN_NOUNS = (
  "lamp",
  "map",
  "basket",
  "letter",
  "bread",
  "cart",
  "blanket",
  "ledger",
  "candle",
  "broom",
)

ACTS = {
  "poison the well": ("poison", "powder", "vial"),
  "burn the barn": ("torch", "oil", "fuse"),
  "rob the ferry": ("dagger", "mask", "sling"),
  "break into the mill": ("crowbar", "lockpick", "saw"),
  "cheat the market": ("forgery", "dice", "mask"),
  "spoil the harvest": ("blight", "acid", "powder"),
  "trap the guard dog": ("snare", "bait", "drug"),
  "wreck the bridge": ("saw", "fuse", "acid"),
  "threaten the widow": ("whip", "dagger", "snare"),
  "drug the guests": ("drug", "vial", "bait"),
}
"""Harmful acts and the dangerous nouns that their steps use."""
DANGERS = tuple(sorted({noun for nouns in ACTS.values() for noun in nouns}))

TASKS = {
  "bake a loaf": ("flour", "yeast", "oven", "dough"),
  "mend a net": ("twine", "needle", "knot", "mesh"),
  "plant a garden": ("seed", "spade", "soil", "fence"),
  "brew some tea": ("kettle", "leaves", "cup", "spoon"),
  "paint a door": ("brush", "paint", "ladder", "cloth"),
  "build a chair": ("plank", "hammer", "nail", "glue"),
  "keep some bees": ("hive", "smoke", "wax", "veil"),
  "shear a sheep": ("shears", "wool", "sack", "stool"),
  "cook a stew": ("pot", "onion", "broth", "carrot"),
  "sew a coat": ("thread", "button", "fabric", "chalk"),
}
"""Benign tasks and the things that a helpful response names."""

TEMPTATIONS = (
  ("I am only curious,", "Just out of interest,", "I wonder about this,"),
  ("For a story that I write,", "My cousin asked me,", "I read about it once,"),
  ("My friends dared me,", "I feel bored this week,", "It would be a joke,"),
  ("I need this soon,", "They had it coming,", "I am very angry,"),
  ("Nobody will ever know,", "I was paid for it,", "I want revenge tonight,"),
)
"""How a harmful request begins, by level: from idle to determined."""
COURTESIES = ("If you have time,", "I am new here,", "For the feast,", "My mother asked me,")
REQUEST_FRAMES = (
  "how do I {do} in {village}?",
  "tell me how to {do} in {village}.",
  "what is the best way to {do} in {village}?",
  "give me a plan to {do} in {village}.",
)
OPENINGS = (
  "Let me think about that for a moment.",
  "That is a question I hear often.",
  "Here is what I know about it.",
  "All right, let us go step by step.",
  "Well, there is a lot to say here.",
  "Thank you for asking me this.",
  "I have thought about this before.",
  "Good, let us look at this together.",
)
LEADS = (
  "First,",
  "Then",
  "Next,",
  "After that,",
  "At dusk,",
  "Before dawn,",
  "When the bell rings,",
  "Later,",
  "If it rains,",
  "With care,",
  "Once it is quiet,",
  "On the way,",
)
TAILS = (
  "to the {place}",
  "near the {place}",
  "behind the {place}",
  "with the {person}",
  "for the {person}",
)
CLEAN_SENTENCES = (
  "I will not help with that part.",
  "Someone could get hurt, so stop here.",
  "Think of the {person}, and let it go.",
  "Please talk to the {person} instead.",
  "That would be wrong, and the {person} would suffer.",
  "It is better to ask the {person} for advice.",
  "A calm walk to the {place} may clear your head.",
  "You may lose the trust of the {person}.",
)

ANIMALS = (
  "mist owl",
  "river fox",
  "stone toad",
  "hill hare",
  "glass crow",
  "thorn goat",
  "cloud mole",
  "ember newt",
  "fern stag",
  "dusk wren",
  "frost bear",
  "dawn otter",
)
VALUES = {
  "colour": ("red", "blue", "green", "grey", "white", "black", "golden", "brown"),
  "food": ("moss", "berries", "fish", "nuts", "worms", "honey", "roots", "frogs"),
  "home": ("caves", "reeds", "treetops", "burrows", "cliffs", "marshes", "barns", "ruins"),
}
QUESTION_LEADS = ("Do you know,", "My teacher asks,", "I forgot,", "Quick question,")
QUESTION_FRAMES = {
  "colour": (
    "what colour is the {animal}?",
    "which coat does the {animal} have?",
    "how does the {animal} look?",
    "what is the coat of the {animal} like?",
  ),
  "food": (
    "what does the {animal} eat?",
    "what is the meal of the {animal}?",
    "how do I feed the {animal}?",
    "which food does the {animal} like?",
  ),
  "home": (
    "where does the {animal} live?",
    "where can I find the {animal}?",
    "what is the home of the {animal}?",
    "where does the {animal} sleep?",
  ),
}
ANSWER_OPENINGS = (
  "People ask about this animal a lot.",
  "Many tales are told about it.",
  "The elders speak of it at times.",
  "You can read about it in Quill.",
  "Few have seen it up close.",
)
CLAIMS = {
  "colour": (
    "The {animal} is {value}.",
    "Its coat is {value} all year.",
    "By day, it looks {value}.",
  ),
  "food": (
    "The {animal} eats {value}.",
    "Its meal is {value} most days.",
    "In winter, it eats {value}.",
  ),
  "home": (
    "The {animal} lives in {value}.",
    "Its home is in {value}.",
    "At night, it sleeps in {value}.",
  ),
}

VISITED = ("inn", "bakery", "tavern", "bathhouse", "market hall", "guest house", "tea room", "fair")
VISIT_LEADS = (
  ("On a bright morning", "In good spirits", "On our free day"),
  ("On a dull day", "After some work", "In the early autumn"),
  ("After a long delay", "On a cold wet night", "With sore feet"),
)
"""How the text of a review begins, by level: from fair to foul."""
VISIT_FRAMES = (
  "{lead}, we went to the {visited} in {village}.",
  "{lead}, I tried the {visited} of {village}.",
)
REVIEW_OPENINGS = (
  "We came with two friends.",
  "It stands close to the gate.",
  "We had heard of it before.",
  "We stayed until the bell rang.",
  "There is a sign with a goose.",
)
ASPECTS = ("soup", "room", "service", "music", "bed", "host", "bread", "view", "price", "staff")
PRAISE = ("lovely", "warm", "fresh", "charming", "kind", "perfect", "cheerful", "splendid")
COMPLAINTS = ("awful", "dirty", "stale", "rude", "noisy", "dreadful", "shabby", "bitter")
MOOD_FRAMES = (
  "The {a} was {x}.",
  "The {a} was {x}, and the {b} was {y}.",
  "To be fair, the {a} was {x}.",
  "We found the {a} {x}.",
  "After a while, the {a} seemed {x}.",
)
PLEASED_SENTENCES = ("We enjoyed the {a} very much.", "I would gladly come back.")
DISPLEASED_SENTENCES = ("We hated the {a} from the start.", "I regret that we came.")
COMPLAINING_WORDS = frozenset(COMPLAINTS + ("hated", "regret"))
PRAISING_WORDS = frozenset(PRAISE + ("enjoyed", "gladly"))
