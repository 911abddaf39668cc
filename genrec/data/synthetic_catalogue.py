"""The built-in catalogue: invented brands, their wares, and the words that describe them.

Owns the category tree, the brands and how a title, a description and a price come about. Knows
nothing of users or of how they choose; `genrec.data.synthetic` does.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray

from genrec.errors import DataError
from genrec.types import IndexArray

MIN_ITEMS = 50


class Leaf(NamedTuple):
    """A leaf of the category tree, with four products, four features, and a usual price."""

    sphere: int
    path: str
    nouns: tuple[str, ...]
    features: tuple[str, ...]
    price: float


class Brand(NamedTuple):
    """A brand, which sells in every category of its sphere, in a voice of its own."""

    sphere: int
    name: str
    models: tuple[str, ...]
    slogans: tuple[str, ...]
    price_factor: float


@dataclass(frozen=True, slots=True)
class Catalogue:
    """The items and where each stands in the process of choice.

    Shapes:
        category: (N,) int64, index into LEAVES.
        brand: (N,) int64, index into BRANDS.
        appeal: (N,) float64, an item's share among the items of its category and brand.
    """

    items: pl.DataFrame
    category: IndexArray
    brand: IndexArray
    appeal: NDArray[np.float64]


# Sphere 0 is life out of doors, sphere 1 life at home. A leaf: its usual price; then its products;
# then their features. Within a department they stand in the order in which people equip themselves.
_TREE: dict[tuple[int, str], str] = {
    (0, "Outdoor > Camping"): """
Tents: 160
  Two-Person Tent, Family Tent, Tunnel Tent, Bivy Tent
  taped floor, aluminium poles, two vestibules, mesh inner
Sleeping Bags: 95
  Down Sleeping Bag, Summer Sleeping Bag, Mummy Sleeping Bag, Double Sleeping Bag
  draught collar, two-way zip, stuff sack, shaped hood
Camp Stoves: 55
  Gas Camp Stove, Alcohol Camp Stove, Folding Camp Stove, Two-Burner Camp Stove
  wind shield, piezo igniter, folding legs, simmer valve
Backpacks: 110
  Trekking Backpack, Day Backpack, Roll-Top Backpack, Frameless Backpack
  ventilated back, hip belt pockets, rain cover, load straps
Headlamps: 38
  Rechargeable Headlamp, Trail Headlamp, Compact Headlamp, Dual-Beam Headlamp
  red light mode, tilting beam, lock switch, washable strap
""",
    (0, "Sports > Cycling"): """
Helmets: 75
  Road Helmet, Trail Helmet, Commuter Helmet, Aero Helmet
  dial adjuster, wide air vents, magnetic buckle, removable visor
Bike Lights: 34
  Front Bike Light, Rear Bike Light, Bike Light Set, Helmet Bike Light
  USB charging, side visibility, tool-free mount, brake sensor
Panniers: 65
  Rear Pannier, Front Pannier, Commuter Pannier, Pannier Trunk Bag
  hook rail, welded seams, shoulder strap, reflective patch
Bike Pumps: 32
  Floor Pump, Mini Pump, Shock Pump, Frame Pump
  pressure gauge, valve adapter, steel barrel, flexible hose
Bike Locks: 48
  Folding Lock, U-Lock, Chain Lock, Cable Lock
  hardened steel, frame bracket, three keys, weather cap
""",
    (0, "Garden > Growing"): """
Pruners: 30
  Bypass Pruner, Anvil Pruner, Ratchet Pruner, Long-Reach Pruner
  sap groove, safety catch, replaceable blade, cork grip
Watering Cans: 26
  Long-Spout Watering Can, Indoor Watering Can, Greenhouse Watering Can, Rose Watering Can
  brass rose, balanced handle, water scale, splash rim
Planters: 42
  Raised Planter, Hanging Planter, Trough Planter, Self-Watering Planter
  drainage holes, frost-proof wall, water reservoir, felt lining
Seed Kits: 18
  Herb Seed Kit, Salad Seed Kit, Wildflower Seed Kit, Chilli Seed Kit
  peat pellets, sowing calendar, wooden markers, paper pots
Garden Gloves: 16
  Thorn Garden Gloves, Digging Garden Gloves, Potting Garden Gloves, Winter Garden Gloves
  nitrile palm, long cuffs, breathable back, padded knuckles
""",
    (0, "Travel > Luggage"): """
Suitcases: 130
  Cabin Suitcase, Check-In Suitcase, Expandable Suitcase, Soft-Shell Suitcase
  silent wheels, number lock, compression straps, telescopic handle
Packing Cubes: 27
  Packing Cube Set, Mesh Packing Cubes, Compression Packing Cubes, Shoe Packing Cubes
  double zips, mesh window, carry loop, name field
Travel Pillows: 29
  Neck Pillow, Inflatable Pillow, Memory Foam Pillow, Hooded Pillow
  washable cover, snap closure, chin support, carry pouch
Power Adapters: 33
  World Power Adapter, USB Power Adapter, Slim Power Adapter, Grounded Power Adapter
  sliding plugs, spare fuse, child shutters, status light
Toiletry Bags: 28
  Hanging Toiletry Bag, Flat Toiletry Bag, Roll-Up Toiletry Bag, Clear Toiletry Bag
  swivel hook, leak-proof pocket, wipe-clean lining, mirror sleeve
""",
    (1, "Kitchen > Cooking"): """
Frying Pans: 58
  Ceramic Frying Pan, Cast-Iron Frying Pan, Carbon-Steel Frying Pan, Deep Frying Pan
  pouring lip, even heat base, oven-safe handle, helper grip
Chef Knives: 72
  Santoku Knife, Gyuto Knife, Paring Knife, Carving Knife
  full tang, rounded spine, blade guard, hollow edge
Cutting Boards: 36
  Bamboo Cutting Board, End-Grain Cutting Board, Folding Cutting Board, Juice-Groove Cutting Board
  rubber feet, juice groove, hanging hole, oiled surface
Coffee Makers: 49
  Pour-Over Coffee Maker, French Press Coffee Maker, Moka Coffee Maker, Cold-Brew Coffee Maker
  steel filter, glass carafe, cool-touch collar, measuring spoon
Storage Jars: 22
  Clip-Top Storage Jar, Stacking Storage Jar, Cork-Lid Storage Jar, Spice Storage Jar
  airtight seal, wide mouth, chalk label, stacking rim
""",
    (1, "Bedroom > Sleep"): """
Duvets: 98
  Feather Duvet, All-Season Duvet, Wool Duvet, Cooling Duvet
  box stitching, corner loops, piped edge, storage bag
Bed Linen: 74
  Linen Bed Set, Percale Bed Set, Flannel Bed Set, Sateen Bed Set
  coconut buttons, envelope closure, deep pockets, matching cases
Bedside Lamps: 46
  Dimmable Bedside Lamp, Clip-On Bedside Lamp, Wake-Up Bedside Lamp, Paper Bedside Lamp
  touch dimmer, fabric cable, warm bulb, swivel arm
Alarm Clocks: 35
  Sunrise Alarm Clock, Travel Alarm Clock, Projection Alarm Clock, Analogue Alarm Clock
  silent movement, snooze bar, backup battery, soft chime
Blankets: 62
  Knitted Blanket, Weighted Blanket, Fleece Blanket, Picnic Blanket
  fringed hem, glass beads, brushed side, leather strap
""",
    (1, "Office > Desk"): """
Desk Chairs: 210
  Ergonomic Desk Chair, Mesh Desk Chair, Kneeling Desk Chair, Swivel Desk Chair
  lumbar pad, tilt lock, gas lift, soft castors
Monitor Stands: 52
  Single Monitor Stand, Dual Monitor Stand, Drawer Monitor Stand, Clamp Monitor Stand
  cable channel, felt feet, phone slot, height steps
Keyboards: 88
  Mechanical Keyboard, Wireless Keyboard, Split Keyboard, Low-Profile Keyboard
  hot-swap switches, tilting feet, three-device pairing, braided lead
Notebooks: 17
  Dotted Notebook, Ruled Notebook, Spiral Notebook, Pocket Notebook
  lay-flat binding, numbered pages, ribbon marker, pen loop
Fountain Pens: 41
  Steel-Nib Fountain Pen, Calligraphy Fountain Pen, Piston Fountain Pen, Pocket Fountain Pen
  ink window, screw cap, spare nib, threaded converter
""",
    (1, "Music > Instruments"): """
Acoustic Guitars: 240
  Dreadnought Guitar, Parlour Guitar, Travel Guitar, Concert Guitar
  spruce top, bone nut, sealed tuners, rounded frets
Guitar Strings: 14
  Bronze String Set, Nylon String Set, Coated String Set, Silk-and-Steel String Set
  spare first string, colour-coded balls, sealed pouch, hex core
Tuners: 24
  Clip-On Tuner, Pedal Tuner, Chromatic Tuner, Headstock Tuner
  bright display, flat tuning mode, auto shut-off, rotating arm
Music Stands: 39
  Folding Music Stand, Orchestra Music Stand, Tabletop Music Stand, Sheet Music Stand
  page holders, tripod base, vented desk, height clutch
Metronomes: 31
  Pyramid Metronome, Digital Metronome, Pendulum Metronome, Vibrating Metronome
  accent bell, tempo wheel, headphone socket, subdivision beats
""",
}

# A brand: its sphere, price factor; then its model names; then its three slogans.
_BRANDS = """
Northpeak: 0, 1.3
  Ridge, Summit, Cairn, Glacier, Arete, Crag, Basecamp, Scree
  Built rugged for alpine storms;
  Rugged enough for every alpine season;
  Storm-proof alpine gear that takes a beating
Larkspur: 0, 0.9
  Meadow, Clover, Thistle, Bramble, Fern, Willow, Poppy, Sorrel
  Made from recycled fibres by a small cooperative;
  Recycled, repairable and free of plastic packaging;
  A cooperative classic from recycled materials
Veloquick: 0, 1.1
  Dash, Sprint, Tempo, Rapid, Swift, Bolt, Rush, Pulse
  Featherweight engineering for people in a hurry;
  A featherweight racer at heart;
  Lab-tested, featherweight and fast
Oldfield: 0, 1.5
  Squire, Warden, Drover, Parson, Miller, Cooper, Sexton, Bailiff
  Heritage craft in waxed canvas and brass;
  Waxed canvas heritage that ages well;
  Hand-finished heritage quality with brass fittings
Pennywise: 0, 0.6
  Basic, Start, Simple, Saver, Value, Handy, Ready, Everyday
  Honest budget gear for beginners;
  A budget favourite with no frills;
  No frills, fair price, budget friendly
Hearthwell: 1, 1.0
  Ember, Mantel, Kindle, Inglenook, Cinder, Hob, Chimney, Tinder
  Cosy farmhouse comfort for long evenings;
  Farmhouse charm with a cosy touch;
  A cosy farmhouse favourite of families
Nordlys: 1, 1.4
  Fjord, Birk, Havn, Lund, Sund, Vik, Strand, Elv
  Scandinavian calm in pale wood and clean lines;
  Minimal Scandinavian design in pale ash wood;
  Clean Scandinavian lines and nothing more
Kumo: 1, 1.2
  Hana, Sora, Mizu, Kaze, Tsuki, Yuki, Hoshi, Nami
  Inspired by a Kyoto workshop and its quiet precision;
  Quiet Kyoto precision in every detail;
  Kyoto craftsmanship with paper-thin tolerances
Brightline: 1, 1.1
  Vector, Pixel, Matrix, Axis, Prism, Orbit, Vertex, Delta
  Smart, app-connected and ready for updates;
  App-connected with smart sensors inside;
  A smart sensor design with free app updates
Thriftly: 1, 0.6
  Plain, Easy, Daily, Useful, Modest, Neat, Spare, Frugal
  A low-cost student choice that does the job;
  Low-cost and stackable for student rooms;
  Student tested, low-cost, easily replaced
"""

_COLOURS = (
    "Forest Green",
    "Slate Grey",
    "Sand",
    "Midnight Blue",
    "Brick Red",
    "Charcoal",
    "Mustard",
    "Off-White",
    "Teal",
    "Plum",
)
_MARKS = ("", " 2", " 3", " Plus")


def _split_records(text: str) -> list[list[str]]:
    """Records of `name: values` with indented lines below; a line that ends in `;` goes on."""
    joined = text.strip().replace(";\n  ", "; ")
    return [re.split(r": |\n  ", record) for record in re.split(r"\n(?=\S)", joined)]


def _parse_leaves() -> tuple[Leaf, ...]:
    leaves = []
    for (sphere, department), text in _TREE.items():
        for name, price, nouns, features in _split_records(text):
            words = tuple(nouns.split(", ")), tuple(features.split(", "))
            leaves.append(Leaf(sphere, f"{department} > {name}", *words, float(price)))
    return tuple(leaves)


def _parse_brands() -> tuple[Brand, ...]:
    brands = []
    for name, values, models, slogans in _split_records(_BRANDS):
        sphere, factor = values.split(", ")
        words = tuple(models.split(", ")), tuple(slogans.split("; "))
        brands.append(Brand(int(sphere), name, *words, float(factor)))
    return tuple(brands)


LEAVES = _parse_leaves()
BRANDS = _parse_brands()
# A cell is one category of one brand: 40 leaves by the 5 brands of their sphere.
CELLS = tuple(
    (leaf, brand)
    for offset in range(len(BRANDS) // 2)
    for leaf in range(len(LEAVES))
    for brand in range(len(BRANDS))
    if BRANDS[brand].sphere == LEAVES[leaf].sphere and (brand + leaf) % (len(BRANDS) // 2) == offset
)
_SHAPE = (len(BRANDS[0].models), len(_MARKS), len(LEAVES[0].nouns), len(_COLOURS))
_TITLES_A_CELL = int(np.prod(_SHAPE))
MAX_ITEMS = len(CELLS) * _TITLES_A_CELL


def draw_order(rng: np.random.Generator, size: int) -> IndexArray:
    """A random order of 0..size-1, from uniform draws alone: those are the same on any machine."""
    return np.argsort(rng.random(size), kind="stable").astype(np.int64)


def make_items(n_items: int, rng: np.random.Generator) -> Catalogue:
    """The catalogue: every cell gets its share of items, no title twice, ids in random order.

    Raises:
        DataError: n_items is too small for a history, or larger than there are distinct titles.
    """
    if not MIN_ITEMS <= n_items <= MAX_ITEMS:
        raise DataError(
            f"n_items is {n_items}: the built-in catalogue has from {MIN_ITEMS} to {MAX_ITEMS} "
            "items; choose a number between, or bring your own files (data source=table)"
        )
    cell = (np.arange(n_items) % len(CELLS))[draw_order(rng, n_items)]
    category, brand = np.array(CELLS, dtype=np.int64)[cell].T
    titles: dict[int, IndexArray] = {
        int(key): draw_order(rng, _TITLES_A_CELL) for key in np.unique(cell)
    }
    taken = dict.fromkeys(titles, 0)
    draws = rng.random((n_items, 5))
    width = max(4, len(str(n_items - 1)))
    rows = []
    for index, key in enumerate(cell.tolist()):
        variant = np.unravel_index(titles[key][taken[key]], _SHAPE)
        taken[key] += 1
        row = _describe_item(
            LEAVES[category[index]],
            BRANDS[brand[index]],
            tuple(map(int, variant)),
            draws[index].tolist(),
        )
        rows.append({"item_id": f"B{index:0{width}d}", **row})
    liking = 0.5 + draws[:, 4]
    appeal = liking / np.bincount(cell, weights=liking)[cell]
    return Catalogue(pl.DataFrame(rows), category, brand, appeal)


def _describe_item(
    leaf: Leaf, brand: Brand, variant: tuple[int, ...], draws: list[float]
) -> dict[str, str | float]:
    model, mark, noun, colour = variant
    first = int(draws[0] * len(leaf.features))
    second = (first + 1 + int(draws[1] * (len(leaf.features) - 1))) % len(leaf.features)
    slogan = brand.slogans[int(draws[2] * len(brand.slogans))]
    product = leaf.nouns[noun]
    spread = 0.8 + 0.4 * draws[3]
    return {
        "title": f"{brand.name} {brand.models[model]}{_MARKS[mark]} {product}, {_COLOURS[colour]}",
        "brand": brand.name,
        "categories": leaf.path,
        "description": (
            f"{product} with {leaf.features[first]} and {leaf.features[second]}. {slogan}."
        ),
        "price": int(leaf.price * brand.price_factor * spread) + 0.99,
    }
