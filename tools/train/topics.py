"""The word lists from which training prompts are combined."""

from __future__ import annotations


def _words(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.replace("\n", " ").split(",") if part.strip())


SCIENCE = _words("""
plate tectonics, the water cycle, black holes, the periodic table, natural selection, vaccines, nuclear
fusion, semiconductors, the greenhouse effect, enzymes, the nitrogen cycle, sound waves, the human heart,
antibiotics, volcanoes, comets, Newton's laws of motion, electric motors, DNA replication, mitosis, the
ozone layer, tides, gravity, magnetism, chemical bonds, acids and bases, coral reefs, the immune system,
the nervous system, solar panels, batteries, lasers, the Doppler effect, osmosis, the carbon cycle,
earthquakes, glaciers, supernovae, binary search trees, public-key cryptography, neural networks, the
internet, operating systems, compilers, relational databases, bridges, jet engines, wind turbines,
desalination, 3D printing
""")

HUMANITIES = _words("""
the Industrial Revolution, the Roman Republic, the Silk Road, the Renaissance, the printing press,
feudalism, the French Revolution, the Cold War, the Great Depression, colonialism, the Enlightenment,
Stoicism, utilitarianism, existentialism, Confucianism, democracy, supply and demand, inflation, free
trade, labour unions, the United Nations, human rights, urbanisation, migration, minimum wages, central
banks, monopolies, jazz, Baroque music, Impressionist painting, Gothic architecture, the novel, Greek
tragedy, the Ottoman Empire, the Mongol Empire, ancient Egypt, the Maya civilisation, the Black Death,
women's suffrage, the civil rights movement, the space race, social media, advertising, constitutional
monarchy, federalism, the welfare state, game theory, cognitive biases, language change, oral history
""")

EVERYDAY = _words("""
baking bread, growing tomatoes, learning the guitar, running a marathon, keeping bees, saving money, job
interviews, public speaking, time management, houseplants, hiking, photography, chess, home insurance,
first aid, cycling to work, meal planning, raising chickens, learning a new language, caring for a dog,
yoga, swimming, sleep habits, recycling, composting, knitting, watercolour painting, buying a used car,
moving to a new city, working from home, board games, camping with children, video games, electric cars,
coffee brewing, tea ceremonies, street food, train travel, museum visits, volunteering, book clubs,
gardening, healthy breakfasts, home repairs, budget travel, podcasts, bird watching, astronomy for
beginners, woodworking, sailing
""")

PLACES = _words("""
Norway, Kyoto, Peru, Morocco, the Scottish Highlands, New Zealand, Lisbon, Vietnam, the Grand Canyon,
Iceland, Istanbul, Patagonia, Vienna, Mexico City, Sri Lanka, the Alps, Cape Town, Prague, Alaska,
Singapore, Tuscany, the Amazon rainforest, Cairo, Seoul, Montreal, Jamaica, Kenya, Croatia, the Black
Forest, Nepal, Buenos Aires, Mumbai, Bavaria, Dublin, the Great Barrier Reef, the Sahara, Lake Titicaca,
Chicago, Berlin, Athens
""")

ANIMALS = _words("""
elephants, octopuses, honeybees, wolves, penguins, blue whales, owls, salmon, bats, crocodiles, ants,
dolphins, giraffes, hummingbirds, sea turtles, kangaroos, foxes, snow leopards, butterflies, spiders,
eagles, bears, sharks, camels, frogs
""")

NEWS = _words("""
a city council that voted to close a street to cars, a storm that damaged a coastal village, a football
team that won after a penalty shoot-out, a bakery that reopened after a fire, a school that replaced
textbooks with tablets, a bank that cut 300 jobs, a rescue of two climbers from a mountain, a new bridge
that opened two years late, a court ruling about a tenants' dispute, a hospital that tests a new treatment
for asthma, an airline that cancelled dozens of flights, a teenager who built a robot, a farmer who found
Roman coins, a museum theft that was solved, a factory that moved abroad, an election won by eleven votes,
a strike of bus drivers, a power cut that darkened a city, a film festival that drew record crowds, a zoo
where twin pandas were born, a company accused of misleading customers, a minister who resigned over
expenses, a tennis player who returned after an injury, a wildfire near a holiday resort, a lottery winner
who gave the money away, a train delayed by a swan, a library that lends tools, a scientist who won a
prize, a cyber attack on a university, a singer who cancelled a tour
""")

PEOPLE = _words("""
Maria, Tom, Aisha, Carlos, Yuki, Hannah, Peter, Olivia, Samuel, Priya, Lucas, Nina, George, Fatima,
Daniel, Emma, Victor, Rosa, Kevin, Ingrid, Leo, Sarah, Ahmed, Julia, Marcus, Grace, Oscar, Lena, Ben,
Chloe
""")

ITEMS = _words("""
apples, pencils, books, tickets, cookies, marbles, stamps, eggs, bottles, chairs, shirts, oranges, toys,
flowers, balloons, candles, sandwiches, notebooks, cupcakes, plants
""")

ROLES = _words("""
a pirate captain, a medieval blacksmith, a travel guide, a nutritionist, a detective in 1920s London, a
chemistry teacher, a career coach, an astronaut on the Moon, a librarian, a chef in a busy kitchen, a
sports commentator, a wise grandmother, a mayor of a small town, a museum curator, a gardener, a software
architect, a judge, a weather presenter, a philosopher, a robot that wants to be human, a veterinarian, a
sailor, an opera singer, a financial adviser, a time traveller, a park ranger, Sherlock Holmes, Albert
Einstein, Cleopatra, Leonardo da Vinci, Robin Hood, Marie Curie, Isaac Newton, Jane Austen, Mozart
""")


COUNTRIES = _words("""
France, Brazil, Japan, Kenya, Canada, Turkey, Argentina, Poland, Egypt, India, Australia, Chile, Finland,
Ghana, Greece, Indonesia, Italy, Mexico, Nigeria, Portugal, South Africa, Spain, Sweden, Thailand,
Ukraine, Colombia, Switzerland, Ireland, Pakistan, the Netherlands, the Philippines, Hungary, Ethiopia,
Cuba, Algeria
""")

INVENTIONS = _words("""
telephone, steam engine, light bulb, bicycle, printing press, airplane, television, microscope,
refrigerator, zipper, sewing machine, typewriter, radio, camera, microwave oven, thermometer, ballpoint
pen, barometer, elevator, helicopter, parachute, transistor, vacuum cleaner, washing machine, compass
""")

WORKS = _words("""
Pride and Prejudice, Moby-Dick, Hamlet, The Odyssey, Don Quixote, Frankenstein, Treasure Island, Dracula,
War and Peace, The Great Gatsby, Romeo and Juliet, Alice in Wonderland, The Jungle Book, Jane Eyre,
Macbeth, Robinson Crusoe, Les Misérables, A Christmas Carol, Peter Pan, The Time Machine, Little Women,
Oliver Twist, The Hobbit, 1984, Animal Farm
""")


def article_topics() -> list[tuple[str, str]]:
    """Every ``(kind, topic)`` on which the model writes a passage; kind ``news`` asks for a report."""
    encyclopedic = (*SCIENCE, *HUMANITIES, *PLACES, *ANIMALS, *EVERYDAY)
    return [("article", topic) for topic in encyclopedic] + [("news", topic) for topic in NEWS]
