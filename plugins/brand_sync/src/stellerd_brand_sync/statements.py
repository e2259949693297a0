"""The set-based merge in SQL that PostgreSQL and SQLite (3.39 or newer) read alike.

Every target has a plan (which staged items differ from what is stored, and in which row: `id`, null where there is
none) and the writes that carry it out. A row that does not differ is in no plan, so it is not written and its
"UpdatedAt" stays.
"""

from __future__ import annotations

from typing import NamedTuple


class Target(NamedTuple):
    """One of the platform's tables: the plan's table, and the statements that fill it and carry it out."""

    plan: str
    find: tuple[str, ...]
    change: str
    add: str


INSERT_CATEGORY = """
INSERT INTO "Categories" ("Id", "Name", "Description", "CreatedAt", "UpdatedAt", "CreatedBy", "UpdatedBy")
VALUES (:id, :name, :description, :now, :now, :user, :user)"""
UPDATE_CATEGORY = """
UPDATE "Categories" SET "Name" = :name, "Description" = :description, "UpdatedAt" = :now, "UpdatedBy" = :user
 WHERE "Id" = :id"""

# "InternalId" is not unique in the platform's table: the oldest row is the brand
FIND_BRANDS = """
INSERT INTO bs_brand_ids (position, id)
SELECT s.position, min(t."Id") FROM bs_brands s JOIN "Brands" t ON t."InternalId" = s.internal_id GROUP BY s.position"""
FIND_NEW_BRANDS = """
INSERT INTO bs_brand_ids (position, id)
SELECT x.position, t."Id" FROM bs_plan_brands x JOIN bs_brands s ON s.position = x.position
  JOIN "Brands" t ON t."InternalId" = s.internal_id WHERE x.id IS NULL"""
BRANDS = Target(
    "bs_plan_brands",
    ("""
INSERT INTO bs_plan_brands (position, id)
SELECT s.position, i.id
  FROM bs_brands s LEFT JOIN bs_brand_ids i ON i.position = s.position LEFT JOIN "Brands" t ON t."Id" = i.id
 WHERE t."Id" IS NULL OR t."Name" IS DISTINCT FROM s.name OR t."CountryCode" IS DISTINCT FROM s.country
    OR t."CurrencyCode" IS DISTINCT FROM s.currency OR t."Description" IS DISTINCT FROM s.description
    OR t."Disclaimer" IS DISTINCT FROM s.disclaimer OR t."RedemptionInstructions" IS DISTINCT FROM s.redemption
    OR t."Terms" IS DISTINCT FROM s.terms OR t."LogoUrl" IS DISTINCT FROM s.logo
    OR t."ModifiedDate" IS DISTINCT FROM s.modified""",),
    """
UPDATE "Brands" AS t
   SET "Name" = s.name, "CountryCode" = s.country, "CurrencyCode" = s.currency, "Description" = s.description,
       "Disclaimer" = s.disclaimer, "RedemptionInstructions" = s.redemption, "Terms" = s.terms, "LogoUrl" = s.logo,
       "ModifiedDate" = s.modified, "UpdatedAt" = :now, "UpdatedBy" = :user
  FROM bs_plan_brands x JOIN bs_brands s ON s.position = x.position WHERE t."Id" = x.id""",
    """
INSERT INTO "Brands" ("InternalId", "Name", "CountryCode", "CurrencyCode", "Description", "Disclaimer",
       "RedemptionInstructions", "Terms", "LogoUrl", "ModifiedDate", "CreatedAt", "UpdatedAt", "CreatedBy", "UpdatedBy")
SELECT s.internal_id, s.name, s.country, s.currency, s.description, s.disclaimer, s.redemption, s.terms, s.logo,
       s.modified, :now, :now, :user, :user
  FROM bs_plan_brands x JOIN bs_brands s ON s.position = x.position WHERE x.id IS NULL ORDER BY s.position""",
)  # fmt: skip

PRODUCTS = Target(
    "bs_plan_products",
    ("""
INSERT INTO bs_plan_products (product_id, id)
SELECT s.id, t."Id"
  FROM bs_products s JOIN bs_brands b ON b.position = s.position LEFT JOIN bs_brand_ids i ON i.position = s.position
  LEFT JOIN "Products" t ON t."Id" = s.id
 WHERE t."Id" IS NULL OR t."BrandInternalId" IS DISTINCT FROM b.internal_id OR t."BrandId" IS DISTINCT FROM i.id
    OR t."Name" IS DISTINCT FROM s.name OR t."MinFaceValue" IS DISTINCT FROM s.low
    OR t."MaxFaceValue" IS DISTINCT FROM s.high OR t."Count" IS DISTINCT FROM s.stock
    OR t."ModifiedDate" IS DISTINCT FROM s.modified""",),
    """
UPDATE "Products" AS t
   SET "BrandInternalId" = b.internal_id, "BrandId" = i.id, "Name" = s.name, "MinFaceValue" = s.low,
       "MaxFaceValue" = s.high, "Count" = s.stock, "ModifiedDate" = s.modified, "UpdatedAt" = :now, "UpdatedBy" = :user
  FROM bs_plan_products x JOIN bs_products s ON s.id = x.product_id JOIN bs_brands b ON b.position = s.position
  JOIN bs_brand_ids i ON i.position = s.position WHERE t."Id" = x.id""",
    """
INSERT INTO "Products" ("Id", "BrandInternalId", "BrandId", "Name", "MinFaceValue", "MaxFaceValue", "Count",
       "ModifiedDate", "CreatedAt", "UpdatedAt", "CreatedBy", "UpdatedBy")
SELECT s.id, b.internal_id, i.id, s.name, s.low, s.high, s.stock, s.modified, :now, :now, :user, :user
  FROM bs_plan_products x JOIN bs_products s ON s.id = x.product_id JOIN bs_brands b ON b.position = s.position
  JOIN bs_brand_ids i ON i.position = s.position WHERE x.id IS NULL ORDER BY s.id""",
)  # fmt: skip

PRICES = Target(
    "bs_plan_prices",
    ("""
INSERT INTO bs_plan_prices (product_id, id)
SELECT s.id, o.id
  FROM bs_products s
  LEFT JOIN (SELECT "ProductId" AS product_id, min("Id") AS id FROM "ProductPricings"
              WHERE "ProductId" IN (SELECT id FROM bs_products) GROUP BY "ProductId") o ON o.product_id = s.id
  LEFT JOIN "ProductPricings" t ON t."Id" = o.id
 WHERE s.commission IS NOT NULL
   AND (t."Id" IS NULL OR t."Min" IS DISTINCT FROM s.price_low OR t."Max" IS DISTINCT FROM s.price_high
        OR t."CurrencyCode" IS DISTINCT FROM s.currency)""",),
    """
UPDATE "ProductPricings" AS t
   SET "Min" = s.price_low, "Max" = s.price_high, "CurrencyCode" = s.currency, "UpdatedAt" = :now, "UpdatedBy" = :user
  FROM bs_plan_prices x JOIN bs_products s ON s.id = x.product_id WHERE t."Id" = x.id""",
    """
INSERT INTO "ProductPricings" ("ProductId", "Min", "Max", "CurrencyCode", "CreatedAt", "UpdatedAt", "CreatedBy",
       "UpdatedBy")
SELECT s.id, s.price_low, s.price_high, s.currency, :now, :now, :user, :user
  FROM bs_plan_prices x JOIN bs_products s ON s.id = x.product_id WHERE x.id IS NULL ORDER BY s.id""",
)  # fmt: skip

CONFIGURATIONS = Target(
    "bs_plan_configurations",
    ("""
INSERT INTO bs_plan_configurations (product_id, id)
SELECT s.id, o.id
  FROM bs_products s
  LEFT JOIN (SELECT "ProductId" AS product_id, min("Id") AS id FROM "ProductPricingConfigurations"
              WHERE "ProductId" IN (SELECT id FROM bs_products) GROUP BY "ProductId") o ON o.product_id = s.id
  LEFT JOIN "ProductPricingConfigurations" t ON t."Id" = o.id
 WHERE s.commission IS NOT NULL AND (t."Id" IS NULL OR t."CommissionTypeId" IS DISTINCT FROM s.commission)""",),
    """
UPDATE "ProductPricingConfigurations" AS t
   SET "CommissionTypeId" = s.commission, "UpdatedAt" = :now, "UpdatedBy" = :user
  FROM bs_plan_configurations x JOIN bs_products s ON s.id = x.product_id WHERE t."Id" = x.id""",
    """
INSERT INTO "ProductPricingConfigurations" ("ProductId", "CommissionTypeId", "CreatedAt", "UpdatedAt", "CreatedBy",
       "UpdatedBy")
SELECT s.id, s.commission, :now, :now, :user, :user
  FROM bs_plan_configurations x JOIN bs_products s ON s.id = x.product_id WHERE x.id IS NULL ORDER BY s.id""",
)  # fmt: skip

LINKS = Target(
    "bs_plan_links",
    ("""
INSERT INTO bs_plan_links (category_id, brand_id, id)
SELECT s.category_id, i.id, NULL
  FROM bs_links s LEFT JOIN bs_brand_ids i ON i.position = s.position
  LEFT JOIN "BrandCategories" t ON t."BrandId" = i.id AND t."CategoryId" = s.category_id
 WHERE t."BrandId" IS NULL""", """
INSERT INTO bs_plan_links (category_id, brand_id, id)
SELECT t."CategoryId", t."BrandId", t."BrandId"
  FROM bs_brands s JOIN bs_brand_ids i ON i.position = s.position JOIN "BrandCategories" t ON t."BrandId" = i.id
  LEFT JOIN bs_links l ON l.position = s.position AND l.category_id = t."CategoryId"
 WHERE s.linked = 1 AND l.category_id IS NULL"""),
    """
DELETE FROM "BrandCategories" WHERE ("BrandId", "CategoryId") IN
       (SELECT x.brand_id, x.category_id FROM bs_plan_links x WHERE x.id IS NOT NULL)""",
    """
INSERT INTO "BrandCategories" ("BrandId", "CategoryId")
SELECT x.brand_id, x.category_id FROM bs_plan_links x WHERE x.id IS NULL""",
)  # fmt: skip

STORED = 'SELECT (SELECT count(*) FROM "Products"), (SELECT count(*) FROM "Brands")'
TOUCHED_IDS = """SELECT product_id FROM bs_plan_products UNION SELECT product_id FROM bs_plan_prices
                       UNION SELECT product_id FROM bs_plan_configurations"""
"""Products with anything new or changed."""
TOUCHED = f"SELECT count(*) FROM ({TOUCHED_IDS}) touched"  # noqa: S608 - ours
OWNERS = """
SELECT DISTINCT t."BrandInternalId" FROM bs_products s JOIN bs_brands b ON b.position = s.position
  JOIN "Products" t ON t."Id" = s.id WHERE t."BrandInternalId" <> b.internal_id"""
"""Brands that staged products are stored under, where the catalogue names another one."""
