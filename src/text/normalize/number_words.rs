//! The English words of numbers, and what each does to the number being read.

use std::collections::HashMap;
use std::sync::LazyLock;

/// One to nineteen.
pub(crate) const ONES: [&str; 19] = [
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
    "thirteen",
    "fourteen",
    "fifteen",
    "sixteen",
    "seventeen",
    "eighteen",
    "nineteen",
];
/// Twenty to ninety.
pub(crate) const TENS: [&str; 8] = [
    "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety",
];
/// Each has three zeros more than the one before.
const GROUPS: [&str; 11] = [
    "thousand",
    "million",
    "billion",
    "trillion",
    "quadrillion",
    "quintillion",
    "sextillion",
    "septillion",
    "octillion",
    "nonillion",
    "decillion",
];

/// What a word does.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Role {
    Zero,
    /// 1 to 19.
    Ones(u8),
    Tens(u8),
    /// So many zeros.
    Multiplier(usize),
    OnesEnding(u8, &'static str),
    TensEnding(u8, &'static str),
    MultiplierEnding(usize, &'static str),
    /// Stands before a number.
    Sign(&'static str),
    /// Stands behind a number and is written before it.
    Currency(&'static str),
    Per,
    Percent,
    And,
    /// Says the next digit this many times.
    Repeat(usize),
    Point,
}

impl Role {
    pub(super) fn is_decimal(self) -> bool {
        matches!(self, Role::Zero | Role::Ones(_) | Role::Tens(_))
    }
}

/// The words of numbers, and what each does.
pub(super) static ROLES: LazyLock<HashMap<String, Role>> = LazyLock::new(|| {
    let mut roles = HashMap::new();
    for zero in ["o", "oh", "zero"] {
        roles.insert(zero.to_owned(), Role::Zero);
    }
    roles.insert("zeroth".to_owned(), Role::OnesEnding(0, "th"));
    for (value, name) in (1..).zip(ONES) {
        roles.insert(name.to_owned(), Role::Ones(value));
        let plural = if name == "six" {
            "sixes".to_owned()
        } else {
            format!("{name}s")
        };
        roles.insert(plural, Role::OnesEnding(value, "s"));
        let (ordinal, ending) = match value {
            1 => ("first".to_owned(), "st"),
            2 => ("second".to_owned(), "nd"),
            3 => ("third".to_owned(), "rd"),
            5 => ("fifth".to_owned(), "th"),
            12 => ("twelfth".to_owned(), "th"),
            // As in the reference, `ninth` is not among them: both sides of a comparison keep the word.
            _ if name.ends_with('t') => (format!("{name}h"), "th"),
            _ => (format!("{name}th"), "th"),
        };
        roles.insert(ordinal, Role::OnesEnding(value, ending));
    }
    for (value, name) in (2..).zip(TENS) {
        let value = 10 * value;
        let stem = name.strip_suffix('y').unwrap_or(name);
        roles.insert(name.to_owned(), Role::Tens(value));
        roles.insert(format!("{stem}ies"), Role::TensEnding(value, "s"));
        roles.insert(format!("{stem}ieth"), Role::TensEnding(value, "th"));
    }
    let groups = (1..).zip(GROUPS).map(|(group, name)| (name, 3 * group));
    for (name, value) in std::iter::once(("hundred", 2)).chain(groups) {
        roles.insert(name.to_owned(), Role::Multiplier(value));
        roles.insert(format!("{name}s"), Role::MultiplierEnding(value, "s"));
        roles.insert(format!("{name}th"), Role::MultiplierEnding(value, "th"));
    }
    for (name, role) in [
        ("minus", Role::Sign("-")),
        ("negative", Role::Sign("-")),
        ("plus", Role::Sign("+")),
        ("positive", Role::Sign("+")),
        ("pound", Role::Currency("£")),
        ("pounds", Role::Currency("£")),
        ("euro", Role::Currency("€")),
        ("euros", Role::Currency("€")),
        ("dollar", Role::Currency("$")),
        ("dollars", Role::Currency("$")),
        ("cent", Role::Currency("¢")),
        ("cents", Role::Currency("¢")),
        ("per", Role::Per),
        ("percent", Role::Percent),
        ("and", Role::And),
        ("double", Role::Repeat(2)),
        ("triple", Role::Repeat(3)),
        ("point", Role::Point),
    ] {
        roles.insert(name.to_owned(), role);
    }
    roles
});
