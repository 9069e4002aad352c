//! What the examples that measure have in common.

/// User and system time of this process so far, where the kernel says (on a busy machine it says more than
/// the clock).
pub(crate) fn processor_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let after_name = stat.rsplit(')').next().unwrap_or_default();
    let ticks = |field: usize| after_name.split_whitespace().nth(field)?.parse::<f64>().ok();
    const TICKS_PER_SECOND: f64 = 100.0; // what Linux reports to programs
    (ticks(11).unwrap_or(f64::NAN) + ticks(12).unwrap_or(f64::NAN)) / TICKS_PER_SECOND
}
