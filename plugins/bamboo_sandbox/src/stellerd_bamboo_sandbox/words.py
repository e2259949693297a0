"""Raw material of the generator: countries, names, sentences, and the vendor's known categories."""

from __future__ import annotations

from typing import NamedTuple


class Country(NamedTuple):
    """ISO-2 code, ISO-3 currency, one unit of denominations in 1e-4 of it, its worth in 1e-6 US dollars."""

    code: str
    currency: str
    unit4: int
    usd6: int


COUNTRIES = (
    Country("US", "USD", 10_000, 1_000_000), Country("AE", "AED", 50_000, 272_294),
    Country("SA", "SAR", 50_000, 266_600), Country("GB", "GBP", 10_000, 1_273_100),
    Country("DE", "EUR", 10_000, 1_084_350), Country("FR", "EUR", 10_000, 1_084_350),
    Country("ES", "EUR", 10_000, 1_084_350), Country("IT", "EUR", 10_000, 1_084_350),
    Country("NL", "EUR", 10_000, 1_084_350), Country("FI", "EUR", 10_000, 1_084_350),
    Country("PT", "EUR", 10_000, 1_084_350), Country("IE", "EUR", 10_000, 1_084_350),
    Country("TR", "TRY", 250_000, 29_120), Country("IN", "INR", 500_000, 11_940),
    Country("JP", "JPY", 1_000_000, 6_512), Country("KR", "KRW", 10_000_000, 724),
    Country("ID", "IDR", 100_000_000, 62), Country("VN", "VND", 200_000_000, 39),
    Country("BR", "BRL", 50_000, 181_400), Country("MX", "MXN", 200_000, 54_330),
    Country("CA", "CAD", 10_000, 731_500), Country("AU", "AUD", 10_000, 655_200),
    Country("NZ", "NZD", 10_000, 601_800), Country("SG", "SGD", 10_000, 741_900),
    Country("MY", "MYR", 50_000, 213_700), Country("TH", "THB", 500_000, 27_850),
    Country("PH", "PHP", 500_000, 17_420), Country("ZA", "ZAR", 200_000, 53_910),
    Country("EG", "EGP", 500_000, 20_650), Country("KW", "KWD", 2_500, 3_256_900),
    Country("BH", "BHD", 2_500, 2_652_500), Country("OM", "OMR", 2_500, 2_597_400),
    Country("QA", "QAR", 50_000, 274_700), Country("JO", "JOD", 5_000, 1_410_400),
    Country("PL", "PLN", 50_000, 251_300), Country("CZ", "CZK", 250_000, 43_120),
    Country("SE", "SEK", 100_000, 94_470), Country("NO", "NOK", 100_000, 93_110),
    Country("DK", "DKK", 100_000, 145_330), Country("CH", "CHF", 10_000, 1_127_400),
    Country("HU", "HUF", 5_000_000, 2_741), Country("RO", "RON", 50_000, 217_900),
)  # fmt: skip

UNITS = (1, 2, 5, 5, 10, 10, 15, 20, 25, 25, 30, 40, 50, 50, 60, 75, 100, 100, 150, 200, 250, 300, 500)
"""Denominations in a country's units; the common ones twice."""

FIRST_NAMES = (
    "Nordlys", "Sandpiper", "Café Ørsted", "Blue Harbour", "Kestrel", "Palmyra", "Lumière", "Saffron & Sons",
    "Tamarind", "Quartz", "Müller's", "Pixel Forge", "Oasis", "Juniper", "Ironwood", "Zephyr", "Marigold", "Obsidian",
    "Coral Bay", "Wanderlust", "Little Fox", "Al Noor", "Sakura 桜", "El Niño", "Thistle", "Copperleaf", "Moonrise",
    "Vantage", "Peak 8", "Honey & Oak", "Silk Road", "Bright Owl", "Cedar", "Falcon", "Tidal", "Amber", "Hearthside",
    "Northgate", "Velvet", "Onyx",
)  # fmt: skip

SECOND_NAMES = (
    "Games", "Market", "Outfitters", "Airlines", "Hotels", "Beauty", "Kitchen", "Books", "Kids", "Electronics",
    "Fuel", "Pets", "Telecom", "Stream", "Music", "Fitness", "Pharmacy", "Travel", "Furniture", "Garden", "Tools",
    "Cinema", "Coffee", "Shoes", "Sports", "Mobile", "Wallet", "Academy", "Mall", "Grocers",
)  # fmt: skip

SENTENCES = (
    "This card can be redeemed online and in every participating store.",
    "Enter the code at checkout; the amount is taken off the total at once.",
    "The balance is valid for 12 months from the date of purchase unless the law of your country says otherwise.",
    "Cards can't be returned, exchanged for cash or used to buy other gift cards.",
    "One order may combine up to five codes; any remainder stays on the account.",
    "Lost, stolen or damaged codes will not be replaced by the issuer or by the distributor.",
    "Delivery fees, customs duties &amp; taxes are not covered by the face value.",
    "The code works only for accounts that are registered in the country named on the card.",
    "For help write to <a href=\"https://help.example.com/cards?topic=redeem&amp;lang=en\">customer care</a>.",
    "Résumé des conditions : la carte n'est ni remboursable ni échangeable.",
    "Die Karte ist übertragbar; eine Barauszahlung ist ausgeschlossen.",
    "تُستخدم البطاقة مرة واحدة فقط عبر الموقع الإلكتروني.",
    "Promotions & vouchers marked \"not combinable\" stay excluded – please check the basket before paying.",
    "Scratch off the panel gently, then type the 16 characters without spaces (0 and O differ!).",
    "The issuer may change these terms by notice on its website; cards already sold keep the older ones.",
    "Redemption may take up to 24\u00a0hours during peak seasons \U0001f381.",
)  # fmt: skip

CATEGORIES: tuple[tuple[int, str], ...] = (
    (1, "Entertainment"), (2, "Gaming"), (3, "Prepaid Cards"), (4, "Fashion & Accessories"),
    (5, "Tools & Home Improvement"), (6, "Airlines & Hotels"), (7, "Beauty Wellness & Spa"), (9, "eCommerce"),
    (10, "Dining & Restaurants"), (11, "Kids Fashion & Toys"), (12, "Travel & Leisure"), (13, "Home & Garden"),
    (14, "Learning"), (15, "Sports & Lifestyle"), (16, "Electronics"), (17, "Crypto"),
    (18, "Supermarkets & Hypermarkets"), (19, "Bookstore"), (20, "Telecommunication & Internet"),
    (21, "Department Stores"), (22, "Mobile Application"), (23, "Shopping Mall"), (24, "Gas Station"),
    (25, "Drugstore"), (26, "Pet Shop & Pet Care"), (27, "Charity"), (30, "Petroleum"),
)  # fmt: skip
"""The ids and names the vendor is known to use; 8, 28 and 29 do not exist."""
