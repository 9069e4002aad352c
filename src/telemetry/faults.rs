//! Panics that a test orders through the environment of the program; only with the feature `testsuite`.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

/// Which stages panic, and at which of their work items, counted from 1: `encode:5,publish:12`.
const ORDERS: &str = "SPEECHVERSE_TEST_PANICS";

/// A panic that was ordered.
#[derive(Debug)]
struct Order {
    stage: String,
    item: u64,
    seen: AtomicU64,
}

/// Panics when it is the turn of `stage`'s present work item.
///
/// # Panics
/// As ordered, and when the order cannot be read.
pub(super) fn strike(stage: &str) {
    static PENDING: OnceLock<Vec<Order>> = OnceLock::new();
    let pending = PENDING.get_or_init(|| parse(&std::env::var(ORDERS).unwrap_or_default()));
    for order in pending.iter().filter(|order| order.stage == stage) {
        let number = order.seen.fetch_add(1, Ordering::Relaxed) + 1;
        assert!(
            number != order.item,
            "{ORDERS} orders a panic of {stage} at item {number}"
        );
    }
}

fn parse(text: &str) -> Vec<Order> {
    let order = |part: &str| {
        let (stage, item) = part.split_once(':')?;
        Some(Order {
            stage: stage.to_owned(),
            item: item.parse().ok()?,
            seen: AtomicU64::new(0),
        })
    };
    let parts = text.split(',').filter(|part| !part.is_empty());
    parts
        .map(|part| order(part).unwrap_or_else(|| panic!("`{part}` of {ORDERS} is not STAGE:ITEM")))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_are_a_stage_and_the_number_of_an_item_each() {
        let orders = parse("encode:5,publish:12");

        let read: Vec<(&str, u64)> = orders
            .iter()
            .map(|order| (order.stage.as_str(), order.item))
            .collect();
        assert_eq!(read, [("encode", 5), ("publish", 12)]);
        assert!(parse("").is_empty());
    }
}
