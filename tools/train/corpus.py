"""The language of the demo's model: conversations in plain English in which a
user tells facts and asks for them many turns later.

Every assistant answer is a function of the conversation so far, so there is
exactly one right answer to every turn. A fact has a *kind* (the user's name,
the cat's name, ...) and a *value* drawn from a pool of 20 or more words; kinds
share pools (a cat and a dog, the user and a brother), so that the value alone
does not tell which fact it belongs to. Facts may be replaced later on, and a
question about something never told is answered by saying so.

A conversation is a list of Turn. Its token layout is ChatML:

    <|im_start|>user\\n{user}<|im_end|>\\n<|im_start|>assistant\\n{assistant}<|im_end|>\\n
"""

from dataclasses import dataclass

PEOPLE = """Nora Oscar Ivan Clara Hugo Marta Peter Lucy Simon Greta Felix Alice
Tobias Julia Victor Hannah Leon Sofia Bruno Elena Martin Ada Walter Irene Paul
Diana George Agnes Robert Helen Thomas Ruth Samuel Vera Daniel Olga Edgar Miriam
Conrad Judith Anton Flora Gilbert Stella Jonas Beatrice Arthur Nadia Philip
Rosa""".split()

WOMEN = set("""Nora Clara Marta Lucy Greta Alice Julia Hannah Sofia Elena Ada
Irene Diana Agnes Helen Ruth Vera Olga Miriam Judith Flora Stella Beatrice Nadia
Rosa""".split())

PETS = """Rex Biscuit Shadow Pepper Ginger Rocky Milo Luna Smoky Tiger Buddy
Coco Misty Bandit Pickle Ziggy Noodle Domino Whisky Patch Bella Rusty Sooty
Pumpkin Marble Fluffy Scout Jasper Teddy Hazel Bingo Muffin Pluto Sparky Velvet
Waffle Nugget Dusty Ruby Boots""".split()

CITIES = """Lisbon Oslo Vienna Dublin Prague Warsaw Athens Madrid Helsinki Zurich
Bergen Naples Geneva Porto Krakow Sydney Toronto Boston Chicago Dallas Denver
Seattle Havana Lima Quito Bogota Cairo Nairobi Tunis Dakar Mumbai Delhi Kyoto
Osaka Seoul Manila Hanoi Jakarta Perth Auckland Glasgow Leeds Cardiff Hamburg
Munich Cologne Venice Turin""".split()

COLOURS = """red green blue yellow purple pink brown black white grey gold silver
violet crimson scarlet turquoise teal ivory amber indigo maroon beige lilac
bronze""".split()

JOBS = """baker teacher nurse doctor lawyer farmer plumber carpenter gardener
painter tailor barber butcher dentist pilot sailor driver banker librarian
journalist translator chemist biologist geologist photographer welder mechanic
builder postman judge waiter cook dancer poet soldier surgeon watchmaker
shepherd fisherman detective""".split()

FOODS = """pizza pasta soup rice bread cheese sushi curry stew salad chocolate
honey apples cherries plums grapes melon figs beans lentils mushrooms spinach
potatoes carrots onions garlic salmon trout herring oysters lobster chicken duck
turkey lamb bacon noodles dumplings pancakes porridge""".split()

INSTRUMENTS = """piano violin cello flute guitar harp trumpet trombone clarinet
oboe bassoon tuba saxophone banjo mandolin lute accordion drums viola organ
ukulele recorder harmonica bagpipes""".split()

LANGUAGES = """Finnish Danish Dutch German Spanish Italian Greek Polish Czech
Russian Turkish Arabic Hebrew Persian Hindi Bengali Tamil Chinese Japanese Korean
Thai Swahili Welsh Latin""".split()


@dataclass(frozen=True)
class Kind:
    """One kind of fact. `{}` stands for the value in every text."""

    name: str
    pool: list        # words, or None: a number of four different digits
    tells: list       # (user, assistant)
    updates: list     # (user, assistant): replaces an earlier value
    asks: list        # user
    answer: str       # to every one of `asks`
    unknown: str      # the same if the fact was never told


KINDS = [
    Kind("name", PEOPLE,
         [("My name is {}.", "Nice to meet you, {}."),
          ("I am {}.", "Hello {}, good to know you."),
          ("You can call me {}.", "Very well, I will call you {}."),
          ("People call me {}.", "Then I will call you {} too.")],
         [("I have changed my name to {}.", "From now on I will call you {}."),
          ("Please call me {} from now on.", "As you wish, {}.")],
         ["What is my name?", "Who am I?", "Do you remember my name?",
          "What am I called?", "Can you tell me my name?"],
         "Your name is {}.", "You have not told me your name."),
    Kind("city", CITIES,
         [("I live in {}.", "I have heard that {} is beautiful."),
          ("My home is in {}.", "A home in {} sounds good."),
          ("I have a flat in {}.", "So you live in {}.")],
         [("I have moved to {}.", "So you live in {} now."),
          ("I live in {} now.", "I hope that you like {}.")],
         ["Where do I live?", "Which city do I live in?", "Where is my home?",
          "Do you remember where I live?"],
         "You live in {}.", "You have not told me where you live."),
    Kind("job", JOBS,
         [("I work as a {}.", "Being a {} must be interesting."),
          ("I am a {} by trade.", "A good {} is hard to find."),
          ("I earn my living as a {}.", "The world needs a good {}.")],
         [("I have a new job as a {}.", "Good luck with being a {}."),
          ("I am now working as a {}.", "I wish you success as a {}.")],
         ["What is my job?", "What do I do for a living?", "What do I work as?",
          "Do you remember my job?"],
         "You work as a {}.", "You have not told me your job."),
    Kind("colour", COLOURS,
         [("My favourite colour is {}.", "I like {} as well."),
          ("The colour that I like best is {}.", "A bright {} is lovely."),
          ("I paint everything {}.", "Then {} is your colour.")],
         [("My new favourite colour is {}.", "I see, {} it is."),
          ("I have changed my mind and like the colour {} best.", "Then {} is your colour now.")],
         ["What is my favourite colour?", "Which colour do I like best?",
          "Do you remember my favourite colour?"],
         "Your favourite colour is {}.", "You have not told me your favourite colour."),
    Kind("food", FOODS,
         [("My favourite food is {}.", "Who does not like {}?"),
          ("I love to eat {}.", "I am told that {} can be delicious."),
          ("I could eat {} every day.", "Every day {}, why not?")],
         [("My new favourite food is {}.", "Your taste has changed to {}."),
          ("These days I like to eat {} most of all.", "So it is {} these days.")],
         ["What is my favourite food?", "What do I like to eat?",
          "Which food do I like best?", "Do you remember my favourite food?"],
         "Your favourite food is {}.", "You have not told me your favourite food."),
    Kind("cat", PETS,
         [("My cat is called {}.", "A cat called {}, how charming."),
          ("I have a cat named {}.", "Say hello to {} from me."),
          ("The name of my cat is {}.", "I think {} is a fine name for a cat.")],
         [("I have a new cat and it is called {}.", "Welcome to the new cat {}."),
          ("My cat has a new name and it is {}.", "So the cat is {} now.")],
         ["What is my cat called?", "What is the name of my cat?",
          "Do you remember my cat?", "How do I call my cat?"],
         "Your cat is called {}.", "You have not told me about your cat."),
    Kind("dog", PETS,
         [("My dog is called {}.", "A dog called {}, how nice."),
          ("I have a dog named {}.", "Give {} a bone from me."),
          ("The name of my dog is {}.", "I think {} is a fine name for a dog.")],
         [("I have a new dog and it is called {}.", "Welcome to the new dog {}."),
          ("My dog has a new name and it is {}.", "So the dog is {} now.")],
         ["What is my dog called?", "What is the name of my dog?",
          "Do you remember my dog?", "How do I call my dog?"],
         "Your dog is called {}.", "You have not told me about your dog."),
    Kind("sister", PEOPLE,
         [("My sister is called {}.", "Please greet your sister {}."),
          ("I have a sister named {}.", "A sister named {}, I see."),
          ("The name of my sister is {}.", "I will remember that {} is your sister.")],
         [("My sister has changed her name to {}.", "So your sister is {} now."),
          ("My sister wants to be called {} now.", "Then she is {} to me.")],
         ["What is my sister called?", "What is the name of my sister?",
          "Who is my sister?", "Do you remember my sister?"],
         "Your sister is called {}.", "You have not told me about your sister."),
    Kind("brother", PEOPLE,
         [("My brother is called {}.", "Please greet your brother {}."),
          ("I have a brother named {}.", "A brother named {}, I see."),
          ("The name of my brother is {}.", "I will remember that {} is your brother.")],
         [("My brother has changed his name to {}.", "So your brother is {} now."),
          ("My brother wants to be called {} now.", "Then he is {} to me.")],
         ["What is my brother called?", "What is the name of my brother?",
          "Who is my brother?", "Do you remember my brother?"],
         "Your brother is called {}.", "You have not told me about your brother."),
    Kind("instrument", INSTRUMENTS,
         [("I play the {}.", "The {} has a wonderful sound."),
          ("My instrument is the {}.", "I would love to hear your {}."),
          ("I make music on the {}.", "Music on the {} is a joy.")],
         [("I have given up music and begun again with the {}.", "Enjoy your new {}."),
          ("Now I play the {} instead.", "So it is the {} now.")],
         ["What instrument do I play?", "Which instrument is mine?",
          "Do you remember what I play?"],
         "You play the {}.", "You have not told me what you play."),
    Kind("language", LANGUAGES,
         [("I am learning {}.", "Learning {} takes time."),
          ("I am taking lessons in {}.", "Lessons in {} are a good idea."),
          ("I study {} in the evening.", "You will soon speak {}.")],
         [("I have started to learn {} instead.", "Have fun with {} then."),
          ("Now I study {} instead.", "So {} is next.")],
         ["Which language am I learning?", "What language do I study?",
          "Do you remember which language I learn?"],
         "You are learning {}.", "You have not told me which language you learn."),
    Kind("code", None,
         [("The code of my door is {}.", "I will keep the code {} for you."),
          ("My door opens with the code {}.", "Noted, the code is {}."),
          ("Please remember the door code {}.", "I will remember the code {}.")],
         [("The new code of my door is {}.", "Noted, the new code is {}."),
          ("I have changed the door code to {}.", "From now on the code is {}.")],
         ["What is the code of my door?", "What is my door code?",
          "How do I open my door?", "Do you remember my door code?"],
         "The code of your door is {}.", "You have not told me the code of your door."),
]

SMALL_TALK = [
    ("Hello!", "Hello! How can I help you?"),
    ("Good morning.", "Good morning to you."),
    ("How are you?", "I am fine, thank you."),
    ("Thank you.", "You are welcome."),
    ("Thanks a lot.", "It was a pleasure."),
    ("The weather is nice today.", "Then go out and enjoy the sun."),
    ("It is raining again.", "Do not forget your umbrella."),
    ("I am a little tired.", "Perhaps you should rest for a while."),
    ("Tell me a joke.", "A computer walked into a bar and forgot why."),
    ("What is two plus two?", "Two plus two is four."),
    ("What is the capital of France?", "The capital of France is Paris."),
    ("How many days has a week?", "A week has seven days."),
    ("Are you a machine?", "Yes, I am a small language model."),
    ("Can you sing?", "No, I can only write."),
    ("What can you do?", "I can remember what you tell me."),
    ("I went for a walk.", "A walk is always good."),
    ("I had a long day.", "I hope that the evening is calm."),
    ("Let me think.", "Take your time."),
    ("One moment please.", "Of course, I will wait."),
    ("I am back.", "Welcome back."),
    ("That is funny.", "I am glad that you like it."),
    ("I do not understand.", "Let us try it once more."),
    ("What day is it?", "I have no calendar, I am sorry."),
    ("What time is it?", "I have no clock, I am sorry."),
    ("Is the earth round?", "Yes, the earth is round."),
    ("How far is the moon?", "The moon is very far away."),
    ("Why is the sky blue?", "Because the air scatters the light."),
    ("I am reading a book.", "A good book is a good friend."),
    ("My train is late.", "I hope that it arrives soon."),
    ("I am a bit hungry.", "Then it is time for a meal."),
    ("I need a coffee.", "A cup of coffee helps."),
    ("I could not sleep.", "I am sorry to hear that."),
    ("Do you like music?", "I like everything that has rhythm."),
    ("Do you dream?", "Not that I know."),
    ("Okay.", "Good."),
    ("Go on.", "I am listening."),
    ("You are very kind.", "You are kind too."),
    ("Tell me something nice.", "You are doing very well."),
    ("The garden is full of flowers.", "Flowers make every garden bright."),
    ("I lost my keys.", "Look under the table."),
]

OPENERS = ["By the way, ", "Oh, and ", "You know, ", "Well, ", "So, "]


@dataclass
class Turn:
    user: str
    assistant: str
    kind: str = ""        # the kind of fact, "" for small talk
    act: str = "talk"     # talk, tell, update, ask, unknown
    value: str = ""       # of the fact that is told or asked for
    distance: int = 0     # act ask: turns since the value was last mentioned
    updated: bool = False # act ask: the fact had another value before


class Conversation:
    """Grows a conversation turn by turn from the random generator `rng`."""

    def __init__(self, rng):
        self.rng = rng
        self.turns = []
        self.values = {}    # kind name -> its present value
        self.mention = {}   # kind name -> index of the last turn that says it
        self.updated = set()
        self.used = set()   # no value serves twice in a conversation
        self.last_talk = None

    def _open(self, text):
        """Sometimes puts a phrase before a sentence."""
        if self.rng.random() < 0.8:
            return text
        first = text.split(" ", 1)[0]
        if first != "I":
            text = text[0].lower() + text[1:]
        return self.rng.choice(OPENERS) + text

    def _value(self, kind):
        while True:
            if kind.pool is None:
                value = "".join(self.rng.sample("0123456789", 4))
            else:
                value = self.rng.choice(kind.pool)
            if value not in self.used:
                self.used.add(value)
                return value

    def _add(self, turn):
        self.turns.append(turn)
        return turn

    def untold(self):
        return [k for k in KINDS if k.name not in self.values]

    def told(self):
        return [k for k in KINDS if k.name in self.values]

    def talk(self):
        while True:
            pair = self.rng.choice(SMALL_TALK)
            if pair is not self.last_talk:
                break
        self.last_talk = pair
        return self._add(Turn(pair[0], pair[1]))

    def tell(self, kind):
        """Tells `kind` for the first time, or replaces its value."""
        again = kind.name in self.values
        user, reply = self.rng.choice(kind.updates if again else kind.tells)
        value = self._value(kind)
        if again:
            self.updated.add(kind.name)
        self.values[kind.name] = value
        self.mention[kind.name] = len(self.turns)
        return self._add(Turn(self._open(user.format(value)), reply.format(value),
                              kind.name, "update" if again else "tell", value))

    def ask(self, kind):
        user = self._open(self.rng.choice(kind.asks))
        if kind.name not in self.values:
            return self._add(Turn(user, kind.unknown, kind.name, "unknown"))
        value = self.values[kind.name]
        distance = len(self.turns) - self.mention[kind.name]
        self.mention[kind.name] = len(self.turns)
        return self._add(Turn(user, kind.answer.format(value), kind.name, "ask", value,
                              distance, kind.name in self.updated))


def mixed(rng, n_turns):
    """A training conversation: acts in random order, the mixture itself random."""
    c = Conversation(rng)
    p_talk = rng.choice([0.05, 0.2, 0.4])
    p_tell = rng.choice([0.3, 0.5])
    p_update = rng.choice([0.0, 0.1, 0.2])
    while len(c.turns) < n_turns:
        told, untold = c.told(), c.untold()
        r = rng.random()
        if r < p_talk:
            c.talk()
        elif not told or (untold and rng.random() < p_tell):
            c.tell(rng.choice(untold))
        elif rng.random() < p_update:
            c.tell(rng.choice(told))
        elif untold and rng.random() < 0.1:
            c.ask(rng.choice(untold))
        else:
            c.ask(rng.choice(told))
    return c.turns


def recall(rng, n_facts=10, n_updates=3, n_gap=10, n_unknown=1, p_talk=0.25):
    """A conversation that tells first, then talks for `n_gap` turns, then asks
    for every fact once, each at least `n_gap` turns after its last mention."""
    c = Conversation(rng)
    kinds = rng.sample(KINDS, n_facts)
    acts = list(kinds)
    for kind in rng.sample(kinds, n_updates):
        acts.insert(rng.randint(acts.index(kind) + 1, len(acts)), kind)
    for kind in acts:
        if rng.random() < p_talk:
            c.talk()
        c.tell(kind)
    for _ in range(n_gap):
        c.talk()
    asks = rng.sample(kinds, len(kinds))
    untold = c.untold()
    for kind in rng.sample(untold, min(n_unknown, len(untold))):
        asks.insert(rng.randint(0, len(asks)), kind)
    for kind in asks:
        if rng.random() < p_talk:
            c.talk()
        c.ask(kind)
    return c.turns


def sample_training(rng, n_turns):
    """One training conversation of about `n_turns` turns or more."""
    if rng.random() < 0.5:
        return mixed(rng, n_turns)
    n_facts = rng.randint(2, max(2, min(len(KINDS), n_turns // 3)))
    n_updates = rng.randint(0, n_facts // 2)
    n_gap = rng.randint(0, max(0, n_turns - 2 * n_facts - n_updates))
    return recall(rng, n_facts, n_updates, n_gap, rng.randint(0, 1), rng.choice([0.0, 0.2, 0.4]))


def user_text(turn):
    """What is appended to the conversation for the user's turn."""
    return f"<|im_start|>user\n{turn.user}<|im_end|>\n<|im_start|>assistant\n"


def assistant_text(turn):
    """What the model generates in reply, with the token that ends it."""
    return f"{turn.assistant}<|im_end|>"


def render(turns):
    """The text of a whole conversation, ending with the last assistant's turn."""
    return "".join(user_text(t) + assistant_text(t) + "\n" for t in turns)
