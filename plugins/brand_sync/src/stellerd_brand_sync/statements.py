"""The set-based merge in SQL that PostgreSQL and SQLite (3.39 or newer) read alike.

Every target has a plan (which staged items differ from what is stored, and in which row) and the writes that carry it
out. A row that does not differ is in no plan, so it is not written and its "UpdatedAt" stays.
"""

from __future__ import annotations

PLAN_CATEGORIES = """
INSERT INTO bs_plan_categories (id, stored)
SELECT s.id, t."Id" FROM bs_categories s LEFT JOIN "Categories" t ON t."Id" = s.id
 WHERE t."Id" IS NULL OR t."Name" IS DISTINCT FROM s.name OR t."Description" IS DISTINCT FROM s.description"""
UPDATE_CATEGORIES = """
UPDATE "Categories" AS t
   SET "Name" = s.name, "Description" = s.description, "UpdatedAt" = :now, "UpdatedBy" = :user
  FROM bs_plan_categories x JOIN bs_categories s ON s.id = x.id WHERE t."Id" = x.stored"""
INSERT_CATEGORIES = """
INSERT INTO "Categories" ("Id", "Name", "Description", "CreatedAt", "UpdatedAt", "CreatedBy", "UpdatedBy")
SELECT s.id, s.name, s.description, :now, :now, :user, :user
  FROM bs_plan_categories x JOIN bs_categories s ON s.id = x.id WHERE x.stored IS NULL ORDER BY s.id"""

# "InternalId" is not unique in the platform's table: the oldest row is the brand
FIND_BRANDS = """
INSERT INTO bs_brand_ids (internal_id, id)
SELECT s.internal_id, min(t."Id") FROM bs_brands s JOIN "Brands" t ON t."InternalId" = s.internal_id
 GROUP BY s.internal_id"""
PLAN_BRANDS = """
INSERT INTO bs_plan_brands (internal_id, id)
SELECT s.internal_id, i.id
  FROM bs_brands s LEFT JOIN bs_brand_ids i ON i.internal_id = s.internal_id LEFT JOIN "Brands" t ON t."Id" = i.id
 WHERE t."Id" IS NULL OR t."Name" IS DISTINCT FROM s.name OR t."CountryCode" IS DISTINCT FROM s.country
    OR t."CurrencyCode" IS DISTINCT FROM s.currency OR t."Description" IS DISTINCT FROM s.description
    OR t."Disclaimer" IS DISTINCT FROM s.disclaimer OR t."RedemptionInstructions" IS DISTINCT FROM s.redemption
    OR t."Terms" IS DISTINCT FROM s.terms OR t."LogoUrl" IS DISTINCT FROM s.logo
    OR t."ModifiedDate" IS DISTINCT FROM s.modified"""
UPDATE_BRANDS = """
UPDATE "Brands" AS t
   SET "Name" = s.name, "CountryCode" = s.country, "CurrencyCode" = s.currency, "Description" = s.description,
       "Disclaimer" = s.disclaimer, "RedemptionInstructions" = s.redemption, "Terms" = s.terms, "LogoUrl" = s.logo,
       "ModifiedDate" = s.modified, "UpdatedAt" = :now, "UpdatedBy" = :user
  FROM bs_plan_brands x JOIN bs_brands s ON s.internal_id = x.internal_id WHERE t."Id" = x.id"""
INSERT_BRANDS = """
INSERT INTO "Brands" ("InternalId", "Name", "CountryCode", "CurrencyCode", "Description", "Disclaimer",
       "RedemptionInstructions", "Terms", "LogoUrl", "ModifiedDate", "CreatedAt", "UpdatedAt", "CreatedBy", "UpdatedBy")
SELECT s.internal_id, s.name, s.country, s.currency, s.description, s.disclaimer, s.redemption, s.terms, s.logo,
       s.modified, :now, :now, :user, :user
  FROM bs_plan_brands x JOIN bs_brands s ON s.internal_id = x.internal_id WHERE x.id IS NULL ORDER BY s.position"""
FIND_NEW_BRANDS = """
INSERT INTO bs_brand_ids (internal_id, id)
SELECT x.internal_id, t."Id" FROM bs_plan_brands x JOIN "Brands" t ON t."InternalId" = x.internal_id
 WHERE x.id IS NULL"""

PLAN_PRODUCTS = """
INSERT INTO bs_plan_products (id, stored)
SELECT s.id, t."Id"
  FROM bs_products s LEFT JOIN bs_brand_ids i ON i.internal_id = s.internal_id LEFT JOIN "Products" t ON t."Id" = s.id
 WHERE t."Id" IS NULL OR t."BrandInternalId" IS DISTINCT FROM s.internal_id OR t."BrandId" IS DISTINCT FROM i.id
    OR t."Name" IS DISTINCT FROM s.name OR t."MinFaceValue" IS DISTINCT FROM s.low
    OR t."MaxFaceValue" IS DISTINCT FROM s.high OR t."Count" IS DISTINCT FROM s.stock
    OR t."ModifiedDate" IS DISTINCT FROM s.modified"""
UPDATE_PRODUCTS = """
UPDATE "Products" AS t
   SET "BrandInternalId" = s.internal_id, "BrandId" = i.id, "Name" = s.name, "MinFaceValue" = s.low,
       "MaxFaceValue" = s.high, "Count" = s.stock, "ModifiedDate" = s.modified, "UpdatedAt" = :now, "UpdatedBy" = :user
  FROM bs_plan_products x JOIN bs_products s ON s.id = x.id JOIN bs_brand_ids i ON i.internal_id = s.internal_id
 WHERE t."Id" = x.stored"""
INSERT_PRODUCTS = """
INSERT INTO "Products" ("Id", "BrandInternalId", "BrandId", "Name", "MinFaceValue", "MaxFaceValue", "Count",
       "ModifiedDate", "CreatedAt", "UpdatedAt", "CreatedBy", "UpdatedBy")
SELECT s.id, s.internal_id, i.id, s.name, s.low, s.high, s.stock, s.modified, :now, :now, :user, :user
  FROM bs_plan_products x JOIN bs_products s ON s.id = x.id JOIN bs_brand_ids i ON i.internal_id = s.internal_id
 WHERE x.stored IS NULL"""

PLAN_PRICES = """
INSERT INTO bs_plan_prices (product_id, id)
SELECT s.product_id, o.id
  FROM bs_prices s
  LEFT JOIN (SELECT "ProductId" AS product_id, min("Id") AS id FROM "ProductPricings" GROUP BY "ProductId") o
    ON o.product_id = s.product_id
  LEFT JOIN "ProductPricings" t ON t."Id" = o.id
 WHERE t."Id" IS NULL OR t."Min" IS DISTINCT FROM s.low OR t."Max" IS DISTINCT FROM s.high
    OR t."CurrencyCode" IS DISTINCT FROM s.currency"""
UPDATE_PRICES = """
UPDATE "ProductPricings" AS t
   SET "Min" = s.low, "Max" = s.high, "CurrencyCode" = s.currency, "UpdatedAt" = :now, "UpdatedBy" = :user
  FROM bs_plan_prices x JOIN bs_prices s ON s.product_id = x.product_id WHERE t."Id" = x.id"""
INSERT_PRICES = """
INSERT INTO "ProductPricings" ("ProductId", "Min", "Max", "CurrencyCode", "CreatedAt", "UpdatedAt", "CreatedBy",
       "UpdatedBy")
SELECT s.product_id, s.low, s.high, s.currency, :now, :now, :user, :user
  FROM bs_plan_prices x JOIN bs_prices s ON s.product_id = x.product_id WHERE x.id IS NULL"""

PLAN_CONFIGURATIONS = """
INSERT INTO bs_plan_configurations (product_id, id)
SELECT s.product_id, o.id
  FROM bs_prices s
  LEFT JOIN (SELECT "ProductId" AS product_id, min("Id") AS id FROM "ProductPricingConfigurations"
              GROUP BY "ProductId") o ON o.product_id = s.product_id
  LEFT JOIN "ProductPricingConfigurations" t ON t."Id" = o.id
 WHERE t."Id" IS NULL OR t."CommissionTypeId" IS DISTINCT FROM s.commission"""
UPDATE_CONFIGURATIONS = """
UPDATE "ProductPricingConfigurations" AS t
   SET "CommissionTypeId" = s.commission, "UpdatedAt" = :now, "UpdatedBy" = :user
  FROM bs_plan_configurations x JOIN bs_prices s ON s.product_id = x.product_id WHERE t."Id" = x.id"""
INSERT_CONFIGURATIONS = """
INSERT INTO "ProductPricingConfigurations" ("ProductId", "CommissionTypeId", "CreatedAt", "UpdatedAt", "CreatedBy",
       "UpdatedBy")
SELECT s.product_id, s.commission, :now, :now, :user, :user
  FROM bs_plan_configurations x JOIN bs_prices s ON s.product_id = x.product_id WHERE x.id IS NULL"""

PLAN_NEW_LINKS = """
INSERT INTO bs_plan_links (internal_id, category_id, brand_id, wanted)
SELECT s.internal_id, s.category_id, i.id, 1
  FROM bs_links s LEFT JOIN bs_brand_ids i ON i.internal_id = s.internal_id
  LEFT JOIN "BrandCategories" t ON t."BrandId" = i.id AND t."CategoryId" = s.category_id
 WHERE t."BrandId" IS NULL"""
PLAN_OLD_LINKS = """
INSERT INTO bs_plan_links (internal_id, category_id, brand_id, wanted)
SELECT s.internal_id, t."CategoryId", t."BrandId", 0
  FROM bs_brands s JOIN bs_brand_ids i ON i.internal_id = s.internal_id JOIN "BrandCategories" t ON t."BrandId" = i.id
  LEFT JOIN bs_links l ON l.internal_id = s.internal_id AND l.category_id = t."CategoryId"
 WHERE s.linked = 1 AND l.category_id IS NULL"""
DELETE_LINKS = """
DELETE FROM "BrandCategories" WHERE ("BrandId", "CategoryId") IN
       (SELECT x.brand_id, x.category_id FROM bs_plan_links x WHERE x.wanted = 0)"""
INSERT_LINKS = """
INSERT INTO "BrandCategories" ("BrandId", "CategoryId")
SELECT x.brand_id, x.category_id FROM bs_plan_links x WHERE x.wanted = 1"""

STAGED = "SELECT count(*) FROM bs_products"
STORED = {"brands": 'SELECT count(*) FROM "Brands"', "products": 'SELECT count(*) FROM "Products"'}
TOUCHED = """
SELECT (SELECT count(*) FROM bs_plan_products WHERE stored IS NULL),
       (SELECT count(*) FROM (SELECT id FROM bs_plan_products UNION SELECT product_id FROM bs_plan_prices
                               UNION SELECT product_id FROM bs_plan_configurations) touched),
       (SELECT count(*) FROM "Products" t WHERE NOT EXISTS (SELECT 1 FROM bs_products s WHERE s.id = t."Id")),
       (SELECT count(*) FROM bs_plan_brands WHERE id IS NULL)"""
"""New products; products with anything new or changed; stored ones that the catalogue lacks; new brands."""
