//! Spoken English numbers as digits: `twenty one point five million dollars` is `$21500000`.
//!
//! Digit words in a row are read as they are said (`one oh one` is `101`), years as years (`nineteen ninety nine`
//! is `1999`), ordinals and decades keep their endings (`21st`, `1960s`).

use std::collections::HashMap;
use std::sync::LazyLock;

use regex::{Captures, Regex};

/// Larger numbers stay text: enough for a decillion.
type Integer = u128;

const ONES: [&str; 19] = [
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
const TENS: [&str; 8] = [
    "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety",
];
/// Each a thousand times the one before.
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
enum Role {
    Zero,
    Ones(Integer),
    Tens(Integer),
    Multiplier(Integer),
    OnesEnding(Integer, &'static str),
    TensEnding(Integer, &'static str),
    MultiplierEnding(Integer, &'static str),
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
    fn is_decimal(self) -> bool {
        matches!(self, Role::Zero | Role::Ones(_) | Role::Tens(_))
    }
}

/// The number being read.
#[derive(Clone, Debug, PartialEq)]
enum Value {
    Integer(Integer),
    /// Digits as they were said, perhaps with points.
    Text(String),
}

impl Value {
    fn text(&self) -> String {
        match self {
            Value::Integer(value) => value.to_string(),
            Value::Text(text) => text.clone(),
        }
    }

    /// `value or ""` of the reference: the integer 0 counts as nothing.
    fn text_or_empty(value: Option<&Self>) -> String {
        match value {
            None | Some(Value::Integer(0)) => String::new(),
            Some(value) => value.text(),
        }
    }

    /// The value times `factor`, if that is an integer (and one that fits).
    fn times(&self, factor: Integer) -> Option<Integer> {
        let text = match self {
            Value::Integer(value) => return value.checked_mul(factor),
            Value::Text(text) => text,
        };
        let (whole, decimals) = text.split_once('.').unwrap_or((text, ""));
        let digits = format!("{whole}{decimals}");
        if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
            return None;
        }
        let product = digits.parse::<Integer>().ok()?.checked_mul(factor)?;
        let divisor = Integer::checked_pow(10, decimals.len() as u32)?;
        (product % divisor == 0).then(|| product / divisor)
    }
}

/// Turns spoken numbers into digits.
#[derive(Clone, Debug)]
pub(super) struct NumberNormalizer {
    roles: HashMap<String, Role>,
}

static HALF: LazyLock<Regex> = LazyLock::new(|| regex(r"\band\s+a\s+half\b"));
static LETTER_DIGIT: LazyLock<Regex> = LazyLock::new(|| regex(r"([a-z])([0-9])"));
static DIGIT_LETTER: LazyLock<Regex> = LazyLock::new(|| regex(r"([0-9])([a-z])"));
static ENDING: LazyLock<Regex> = LazyLock::new(|| regex(r"([0-9])\s+(st|nd|rd|th|s)\b"));
static NUMBER: LazyLock<Regex> = LazyLock::new(|| regex(r"^[0-9]+(\.[0-9]+)?$"));
static CENTS: LazyLock<Regex> = LazyLock::new(|| regex(r"([€£$])([0-9]+) (?:and )?¢([0-9]{1,2})\b"));
static CENTS_ONLY: LazyLock<Regex> = LazyLock::new(|| regex(r"[€£$]0.([0-9]{1,2})\b"));
static ONE: LazyLock<Regex> = LazyLock::new(|| regex(r"\b1(s?)\b"));

fn regex(pattern: &str) -> Regex {
    Regex::new(pattern).expect("the patterns here are well formed")
}

fn two_digits(text: &str) -> u32 {
    text.parse().expect("the pattern admits one or two digits")
}

impl NumberNormalizer {
    pub(super) fn new() -> Self {
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
        let thousands = (1..)
            .zip(GROUPS)
            .map(|(power, name)| (name, Integer::pow(1000, power)));
        for (name, value) in std::iter::once(("hundred", 100)).chain(thousands) {
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
        Self { roles }
    }

    /// Lower-case text with its numbers in digits.
    pub(super) fn normalize(&self, text: &str) -> String {
        let text = self.before(text);
        let words: Vec<&str> = text.split_whitespace().collect();
        let mut reader = Reader {
            roles: &self.roles,
            words: &words,
            prefix: None,
            value: None,
            out: Vec::new(),
        };
        reader.read();
        after(&reader.out.join(" "))
    }

    /// `and a half` becomes `point five` behind a number; digits and letters part, but for endings.
    fn before(&self, text: &str) -> String {
        let segments: Vec<&str> = HALF.split(text).collect();
        let mut parts = Vec::new();
        for (index, segment) in segments.iter().enumerate() {
            let Some(last_word) = segment.split_whitespace().last() else {
                continue;
            };
            parts.push(*segment);
            if index + 1 < segments.len() {
                let role = self.roles.get(last_word);
                let number =
                    role.is_some_and(|role| role.is_decimal() || matches!(role, Role::Multiplier(_)));
                parts.push(if number { "point five" } else { "and a half" });
            }
        }
        let text = parts.join(" ");
        let text = LETTER_DIGIT.replace_all(&text, "${1} ${2}");
        let text = DIGIT_LETTER.replace_all(&text, "${1} ${2}");
        ENDING.replace_all(&text, "${1}${2}").into_owned()
    }
}

/// `$2 and ¢7` becomes `$2.07`, `$0.50` becomes `¢50`, and a lone 1 is written out.
fn after(text: &str) -> String {
    let text = CENTS.replace_all(text, |found: &Captures<'_>| {
        format!("{}{}.{:02}", &found[1], &found[2], two_digits(&found[3]))
    });
    let text = CENTS_ONLY.replace_all(&text, |found: &Captures<'_>| {
        format!("¢{}", two_digits(&found[1]))
    });
    ONE.replace_all(&text, "one${1}").into_owned()
}

/// Goes through the words once.
struct Reader<'a> {
    roles: &'a HashMap<String, Role>,
    words: &'a [&'a str],
    prefix: Option<String>,
    value: Option<Value>,
    out: Vec<String>,
}

impl Reader<'_> {
    fn role(&self, index: Option<usize>) -> Option<Role> {
        self.roles.get(*self.words.get(index?)?).copied()
    }

    /// Writes a word or a number, with the prefix that waits for it; the number being read is over.
    fn put(&mut self, text: &str) {
        self.out.push(self.prefix.take().unwrap_or_default() + text);
        self.value = None;
    }

    /// Writes the number being read, if there is one.
    fn flush(&mut self) {
        if let Some(value) = self.value.take() {
            self.put(&value.text());
        }
    }

    fn read(&mut self) {
        let mut index = 0;
        while index < self.words.len() {
            index += 1 + self.word(index);
        }
        self.flush();
    }

    /// Takes the word at `index`; returns how many words after it are used up too.
    fn word(&mut self, index: usize) -> usize {
        let current = self.words[index];
        let before = self.role(index.checked_sub(1));
        let after = self.role(Some(index + 1));
        let number_follows = self
            .words
            .get(index + 1)
            .is_some_and(|next| NUMBER.is_match(next));

        let sign = current.chars().next().filter(|first| "-+£€$¢".contains(*first));
        let digits = sign.map_or(current, |sign| &current[sign.len_utf8()..]);
        if NUMBER.is_match(digits) {
            self.digits(current, sign, digits);
            return 0;
        }
        let Some(role) = self.role(Some(index)) else {
            self.flush();
            self.put(current);
            return 0;
        };
        match role {
            Role::Zero => {
                let text = Value::text_or_empty(self.value.as_ref()) + "0";
                self.value = Some(Value::Text(text));
            }
            Role::Ones(ones) => {
                self.value = Some(match self.value.take() {
                    None => Value::Integer(ones),
                    Some(value) => join_ones(&value, before, ones),
                });
            }
            Role::OnesEnding(ones, ending) => {
                let value = match self.value.take() {
                    None => Value::Integer(ones),
                    Some(value) => join_ones(&value, before, ones),
                };
                self.put(&(value.text() + ending));
            }
            Role::Tens(tens) => {
                self.value = Some(match self.value.take() {
                    None => Value::Integer(tens),
                    Some(value) => join(&value, tens, 100),
                });
            }
            Role::TensEnding(tens, ending) => {
                let value = match self.value.take() {
                    None => Value::Integer(tens),
                    Some(value) => join(&value, tens, 100),
                };
                self.put(&(value.text() + ending));
            }
            Role::Multiplier(factor) => self.multiply(factor),
            Role::MultiplierEnding(factor, ending) => self.multiply_and_end(factor, ending),
            Role::Sign(sign) => {
                self.flush();
                if after.is_some() || number_follows {
                    self.prefix = Some(sign.to_owned());
                } else {
                    self.put(current);
                }
            }
            Role::Currency(symbol) => {
                if self.value.is_some() {
                    self.prefix = Some(symbol.to_owned());
                    self.flush();
                } else {
                    self.put(current);
                }
            }
            Role::Per | Role::Percent => return self.percent(index, role, current),
            Role::And | Role::Repeat(_) | Role::Point if after.is_none() && !number_follows => {
                self.flush();
                self.put(current);
            }
            // Within a number (`one hundred and five`) it is not written.
            Role::And => {
                if !matches!(before, Some(Role::Multiplier(_))) {
                    self.flush();
                    self.put(current);
                }
            }
            Role::Repeat(times) => {
                let digit = match after {
                    Some(Role::Ones(ones)) => ones,
                    Some(Role::Zero) => 0,
                    _ => {
                        self.flush();
                        self.put(current);
                        return 0;
                    }
                };
                let text = Value::text_or_empty(self.value.as_ref()) + &digit.to_string().repeat(times);
                self.value = Some(Value::Text(text));
                return 1;
            }
            Role::Point => {
                if number_follows || after.is_some_and(Role::is_decimal) {
                    let text = Value::text_or_empty(self.value.as_ref()) + ".";
                    self.value = Some(Value::Text(text));
                }
            }
        }
        0
    }

    /// Digits, perhaps with a currency sign and decimals.
    fn digits(&mut self, current: &str, sign: Option<char>, digits: &str) {
        match self.value.take() {
            Some(Value::Text(text)) if text.ends_with('.') => {
                self.value = Some(Value::Text(text + current));
                return;
            }
            Some(value) => self.put(&value.text()),
            None => {}
        }
        if let Some(sign) = sign {
            self.prefix = Some(sign.to_string());
        }
        let text = Value::Text(digits.to_owned());
        self.value = Some(text.times(1).map_or(text, Value::Integer));
    }

    fn multiply(&mut self, factor: Integer) {
        let value = match self.value.take() {
            None => Some(factor),
            Some(Value::Integer(value)) if value != 0 => multiply_last_group(value, factor),
            Some(value) => match value.times(factor) {
                Some(product) => Some(product),
                None => {
                    self.put(&value.text());
                    Some(factor)
                }
            },
        };
        // A product that does not fit any number anybody says starts anew.
        self.value = Some(Value::Integer(value.unwrap_or(factor)));
    }

    fn multiply_and_end(&mut self, factor: Integer, ending: &str) {
        let product = match self.value.take() {
            None => factor,
            Some(Value::Integer(value)) => multiply_last_group(value, factor).unwrap_or(factor),
            Some(value) => value.times(factor).unwrap_or_else(|| {
                self.put(&value.text());
                factor
            }),
        };
        self.put(&format!("{product}{ending}"));
    }

    fn percent(&mut self, index: usize, role: Role, current: &str) -> usize {
        let Some(value) = self.value.take() else {
            self.put(current);
            return 0;
        };
        let cent_follows = self.words.get(index + 1) == Some(&"cent");
        match role {
            Role::Per if !cent_follows => {
                self.put(&value.text());
                self.put(current);
                0
            }
            Role::Per => {
                self.put(&(value.text() + "%"));
                1
            }
            _ => {
                self.put(&(value.text() + "%"));
                0
            }
        }
    }
}

/// `two hundred five thousand`: only what stands behind the last full group is multiplied.
fn multiply_last_group(value: Integer, factor: Integer) -> Option<Integer> {
    let residual = value % 1000;
    residual.checked_mul(factor)?.checked_add(value - residual)
}

/// One to nineteen behind a number.
fn join_ones(value: &Value, before: Option<Role>, ones: Integer) -> Value {
    match value {
        Value::Integer(_) if !matches!(before, Some(Role::Ones(_))) => {
            join(value, ones, if ones < 10 { 10 } else { 100 })
        }
        _ => {
            let mut text = value.text();
            if matches!(before, Some(Role::Tens(_))) && ones < 10 {
                text.pop(); // the zero of the tens
            }
            Value::Text(text + &ones.to_string())
        }
    }
}

/// Adds where there is room for it, else writes the digits behind one another.
fn join(value: &Value, number: Integer, room: Integer) -> Value {
    match value {
        Value::Integer(value) if value % room == 0 => match value.checked_add(number) {
            Some(sum) => Value::Integer(sum),
            None => Value::Text(format!("{value}{number}")),
        },
        value => Value::Text(value.text() + &number.to_string()),
    }
}
