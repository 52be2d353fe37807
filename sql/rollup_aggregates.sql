-- Aggregates that rollups keep groups by, with the rest of theirs in pg_catalog. Readers of a rollup run them too.

CREATE AGGREGATE tally._float8_moments(value double precision) (
  SFUNC = pg_catalog.float8_accum, STYPE = double precision[], INITCOND = '{0,0,0}',
  COMBINEFUNC = pg_catalog.float8_combine, PARALLEL = SAFE);
COMMENT ON AGGREGATE tally._float8_moments(double precision) IS
  'number, sum and sum of squared deviations of values: what variances and standard deviations are made of';
CREATE AGGREGATE tally._float8_regression(y double precision, x double precision) (
  SFUNC = pg_catalog.float8_regr_accum, STYPE = double precision[], INITCOND = '{0,0,0,0,0,0}',
  COMBINEFUNC = pg_catalog.float8_regr_combine, PARALLEL = SAFE);
COMMENT ON AGGREGATE tally._float8_regression(double precision, double precision) IS
  'number, sums and sums of squared and multiplied deviations of pairs: what correlations, covariances and regressions are made of';

CREATE AGGREGATE tally._float8_moments_union(moments double precision[]) (
  SFUNC = pg_catalog.float8_combine, STYPE = double precision[], INITCOND = '{0,0,0}',
  COMBINEFUNC = pg_catalog.float8_combine, PARALLEL = SAFE);
COMMENT ON AGGREGATE tally._float8_moments_union(double precision[]) IS 'the moments of the values that all the given moments are of';
CREATE AGGREGATE tally._float8_regression_union(sums double precision[]) (
  SFUNC = pg_catalog.float8_regr_combine, STYPE = double precision[], INITCOND = '{0,0,0,0,0,0}',
  COMBINEFUNC = pg_catalog.float8_regr_combine, PARALLEL = SAFE);
COMMENT ON AGGREGATE tally._float8_regression_union(double precision[]) IS 'the sums of the pairs that all the given sums are of';
