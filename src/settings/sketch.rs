//! The settings of sketches.

use pgrx::{GucContext, GucFlags, GucRegistry, GucSetting, PostgresGucEnum};
use tally_core::rollup::sketch_settings::SketchSettings;
use tally_core::sketch::{self, Packing, Params};
use tally_core::topn::{self, Counters};

/// [`sketch::Estimator`] as a setting.
#[derive(Clone, Copy, PostgresGucEnum)]
enum Estimator {
    #[name = c"ertl"]
    Ertl,
    #[name = c"classic"]
    Classic,
}

static HLL_ESTIMATOR: GucSetting<Estimator> = GucSetting::<Estimator>::new(Estimator::Ertl);
static HLL_DEFAULT_LOG2M: GucSetting<i32> = GucSetting::<i32>::new(11);
static HLL_DEFAULT_REGWIDTH: GucSetting<i32> = GucSetting::<i32>::new(5);
static HLL_DEFAULT_EXPTHRESH: GucSetting<i32> = GucSetting::<i32>::new(-1);
static HLL_DEFAULT_SPARSEON: GucSetting<i32> = GucSetting::<i32>::new(1);
static HLL_MAX_SPARSE: GucSetting<i32> = GucSetting::<i32>::new(-1);
static TOPN_COUNTERS: GucSetting<i32> = GucSetting::<i32>::new(1000);

pub(super) fn define() {
    GucRegistry::define_enum_guc(
        c"tally.hll_estimator",
        c"Chooses the formula that turns the registers of a sketch into a count.",
        c"\"ertl\" has no bias between small and large counts; \"classic\" gives the numbers of postgresql-hll.",
        &HLL_ESTIMATOR,
        GucContext::Userset,
        GucFlags::default(),
    );
    GucRegistry::define_int_guc(
        c"tally.hll_default_log2m",
        c"Sets the base-2 logarithm of the number of registers of new sketches.",
        c"One more halves the variance of estimates and doubles the size; 11 means 1.3 kB and an error of 2.3 %. Sketches of different settings cannot be united.",
        &HLL_DEFAULT_LOG2M,
        0,
        17,
        GucContext::Userset,
        GucFlags::default(),
    );
    GucRegistry::define_int_guc(
        c"tally.hll_default_regwidth",
        c"Sets the number of bits per register of new sketches.",
        c"5 bits count up to billions, 6 bits up to any number.",
        &HLL_DEFAULT_REGWIDTH,
        1,
        7,
        GucContext::Userset,
        GucFlags::default(),
    );
    GucRegistry::define_int_guc(
        c"tally.hll_default_expthresh",
        c"Sets up to how many values new sketches count exactly.",
        c"-1 means as many as take no more space than all registers, 0 means none; else it has to be a power of 2 up to 8192.",
        &HLL_DEFAULT_EXPTHRESH,
        -1,
        8192,
        GucContext::Userset,
        GucFlags::default(),
    );
    GucRegistry::define_int_guc(
        c"tally.hll_default_sparseon",
        c"Sets whether new sketches may be stored without their empty registers.",
        c"0 means never, 1 means whenever tally.hll_max_sparse allows it.",
        &HLL_DEFAULT_SPARSEON,
        0,
        1,
        GucContext::Userset,
        GucFlags::default(),
    );
    GucRegistry::define_int_guc(
        c"tally.hll_max_sparse",
        c"Sets up to how many registers in use a sketch is stored without the empty ones.",
        c"-1 means whenever that is smaller. Sketches of different settings differ in bytes but not in what they count.",
        &HLL_MAX_SPARSE,
        -1,
        i32::MAX,
        GucContext::Userset,
        GucFlags::default(),
    );
    GucRegistry::define_int_guc(
        c"tally.topn_counters",
        c"Sets how many items a new top-N sketch keeps count of.",
        c"Counts are exact up to so many different items. Beyond that no count is wrong by more than a share of one in so many of all.",
        &TOPN_COUNTERS,
        1,
        topn::MAX_COUNTERS as i32,
        GucContext::Userset,
        GucFlags::default(),
    );
}

/// The number of counters of a new top-N sketch.
pub(crate) fn topn_counters(given: Option<i64>) -> Result<Counters, topn::Error> {
    Counters::new(given.unwrap_or_else(|| i64::from(TOPN_COUNTERS.get())))
}

/// The formula for counts.
pub(crate) fn hll_estimator() -> sketch::Estimator {
    match HLL_ESTIMATOR.get() {
        Estimator::Ertl => sketch::Estimator::Ertl,
        Estimator::Classic => sketch::Estimator::Classic,
    }
}

/// log2m, regwidth, expthresh and sparseon of new sketches, where the caller does not say.
pub(crate) fn hll_params(given: [Option<i64>; 4]) -> Result<Params, sketch::Error> {
    let [log2m, width, threshold, sparse] = given;
    Params::new(
        log2m.unwrap_or_else(|| i64::from(HLL_DEFAULT_LOG2M.get())),
        width.unwrap_or_else(|| i64::from(HLL_DEFAULT_REGWIDTH.get())),
        threshold.unwrap_or_else(|| i64::from(HLL_DEFAULT_EXPTHRESH.get())),
        sparse.unwrap_or_else(|| i64::from(HLL_DEFAULT_SPARSEON.get())),
    )
}

/// What sketches of a rollup are that is made now.
pub(crate) fn sketches_of_new_rollup() -> SketchSettings {
    SketchSettings {
        log2m: HLL_DEFAULT_LOG2M.get().into(),
        regwidth: HLL_DEFAULT_REGWIDTH.get().into(),
        expthresh: HLL_DEFAULT_EXPTHRESH.get().into(),
        sparseon: HLL_DEFAULT_SPARSEON.get().into(),
        counters: TOPN_COUNTERS.get().into(),
    }
}

/// When registers are stored sparsely.
pub(crate) fn hll_packing() -> Packing {
    usize::try_from(HLL_MAX_SPARSE.get()).map_or(Packing::BySize, Packing::UpTo)
}
