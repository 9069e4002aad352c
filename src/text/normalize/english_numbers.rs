//! Spoken English numbers as digits: `twenty one point five million dollars` is `$21500000`.
//!
//! Digit words in a row are read as they are said (`one oh one` is `101`), years as years
//! (`nineteen ninety nine` is `1999`), ordinals and decades keep their endings (`21st`, `1960s`).

use std::sync::LazyLock;

use regex::Captures;

use super::number_words::{ROLES, Role};
use super::pattern::{Pattern, digit};
use super::words;

/// Longer ones are no numbers, as in the reference.
const DIGITS_MAX: usize = 4300;

/// The number being read.
#[derive(Clone, Debug, PartialEq)]
enum Value {
    /// A number, in decimal digits without zeros in front.
    Integer(String),
    /// Digits as they were said, perhaps with points.
    Text(String),
}

impl Value {
    fn number(value: u8) -> Self {
        Value::Integer(value.to_string())
    }

    fn text(self) -> String {
        match self {
            Value::Integer(text) | Value::Text(text) => text,
        }
    }

    /// What more digits are written behind: the integer 0 counts as nothing, as in the reference.
    fn text_or_empty(value: Option<Self>) -> String {
        match value {
            None => String::new(),
            Some(Value::Integer(digits)) if digits == "0" => String::new(),
            Some(value) => value.text(),
        }
    }

    /// Adds a number where there are zeros for its digits, else writes them behind.
    fn join(self, number: u8) -> Self {
        let number = number.to_string();
        match self {
            Value::Integer(digits) if digits == "0" => Value::Integer(number),
            Value::Integer(mut digits) if digits.ends_with(&"00"[..number.len()]) => {
                digits.truncate(digits.len() - number.len());
                Value::Integer(digits + &number)
            }
            value => Value::Text(value.text() + &number),
        }
    }

    /// One to nineteen behind this value, whose last word is `before`.
    fn join_ones(self, before: Option<Role>, ones: u8) -> Self {
        if matches!(self, Value::Integer(_)) && !matches!(before, Some(Role::Ones(_))) {
            return self.join(ones);
        }
        let mut text = self.text();
        if matches!(before, Some(Role::Tens(_))) && ones < 10 {
            text.pop(); // the zero of the tens
        }
        Value::Text(text + &ones.to_string())
    }
}

/// A decimal number with so many zeros more, if that is an integer.
fn shift(text: &str, zeros: usize) -> Option<String> {
    if text.len() > DIGITS_MAX {
        return None;
    }
    let (whole, decimals) = text.split_once('.').unwrap_or((text, ""));
    let digits: Option<Vec<u8>> = whole.chars().chain(decimals.chars()).map(digit).collect();
    let mut digits = digits.filter(|digits| !digits.is_empty())?;
    let end = whole.chars().count() + zeros;
    if digits.iter().skip(end).any(|digit| *digit != 0) {
        return None;
    }
    digits.resize(end, 0);
    Some(written(digits.into_iter()))
}

/// Digits as text, without zeros in front.
fn written(digits: impl Iterator<Item = u8>) -> String {
    let text: String = digits
        .skip_while(|digit| *digit == 0)
        .map(|digit| char::from(b'0' + digit))
        .collect();
    if text.is_empty() { "0".to_owned() } else { text }
}

/// `two hundred five thousand`: only what stands behind the last full thousand gets the zeros.
fn shift_last_group(digits: &str, zeros: usize) -> String {
    let (thousands, rest) = digits.split_at(digits.len().saturating_sub(3));
    let backwards = |digits: &str, zeros| {
        let digits = digits.bytes().rev().map(|digit| digit - b'0');
        std::iter::repeat_n(0, zeros).chain(digits).collect::<Vec<u8>>()
    };
    let (one, other) = (backwards(thousands, 3), backwards(rest, zeros));
    let mut carry = 0;
    let mut sum = Vec::with_capacity(one.len().max(other.len()) + 1);
    for at in 0..=one.len().max(other.len()) {
        carry += one.get(at).unwrap_or(&0) + other.get(at).unwrap_or(&0);
        sum.push(carry % 10);
        carry /= 10;
    }
    written(sum.into_iter().rev())
}

static HALF: LazyLock<Pattern> = LazyLock::new(|| Pattern::new(r"\band\s+a\s+half\b"));
static LETTER_DIGIT: LazyLock<Pattern> = LazyLock::new(|| Pattern::new(r"([a-z])([0-9])"));
static DIGIT_LETTER: LazyLock<Pattern> = LazyLock::new(|| Pattern::new(r"([0-9])([a-z])"));
static ENDING: LazyLock<Pattern> = LazyLock::new(|| Pattern::new(r"([0-9])\s+(st|nd|rd|th|s)\b"));
static NUMBER: LazyLock<Pattern> = LazyLock::new(|| Pattern::new(r"^\d+(\.\d+)?$"));
static CENTS: LazyLock<Pattern> = LazyLock::new(|| Pattern::new(r"([€£$])([0-9]+) (?:and )?¢([0-9]{1,2})\b"));
static CENTS_ONLY: LazyLock<Pattern> = LazyLock::new(|| Pattern::new(r"[€£$]0.([0-9]{1,2})\b"));
static ONE: LazyLock<Pattern> = LazyLock::new(|| Pattern::new(r"\b1(s?)\b"));

fn two_digits(text: &str) -> u32 {
    text.parse().expect("the pattern admits one or two digits")
}

/// Lower-case text with its numbers in digits.
pub(super) fn normalize(text: String) -> String {
    let text = before(text);
    let words: Vec<&str> = words(&text).collect();
    let mut reader = Reader {
        words: &words,
        prefix: None,
        value: None,
        out: Vec::new(),
    };
    reader.read();
    after(reader.out.join(" "))
}

/// `and a half` becomes `point five` behind a number; digits and letters part, but for endings.
fn before(text: String) -> String {
    let segments = HALF.split(&text);
    let mut parts = Vec::new();
    for (index, segment) in segments.iter().enumerate() {
        let Some(last_word) = words(segment).last() else {
            continue;
        };
        parts.push(*segment);
        if index + 1 < segments.len() {
            let role = ROLES.get(last_word);
            let number = role.is_some_and(|role| role.is_decimal() || matches!(role, Role::Multiplier(_)));
            parts.push(if number { "point five" } else { "and a half" });
        }
    }
    let text = parts.join(" ");
    let text = LETTER_DIGIT.replace_all(text, "${1} ${2}");
    let text = DIGIT_LETTER.replace_all(text, "${1} ${2}");
    ENDING.replace_all(text, "${1}${2}")
}

/// `$2 and ¢7` becomes `$2.07`, `$0.50` becomes `¢50`, and a lone 1 is written out.
fn after(text: String) -> String {
    let text = CENTS.replace_all(text, |found: &Captures<'_>| {
        format!("{}{}.{:02}", &found[1], &found[2], two_digits(&found[3]))
    });
    let text = CENTS_ONLY.replace_all(text, |found: &Captures<'_>| format!("¢{}", two_digits(&found[1])));
    ONE.replace_all(text, "one${1}")
}

/// Goes through the words once.
struct Reader<'a> {
    words: &'a [&'a str],
    prefix: Option<String>,
    value: Option<Value>,
    out: Vec<String>,
}

impl Reader<'_> {
    fn role(&self, index: Option<usize>) -> Option<Role> {
        ROLES.get(*self.words.get(index?)?).copied()
    }

    /// Writes a word or a number, with the prefix that waits for it; the number being read is over.
    fn put(&mut self, text: impl Into<String> + AsRef<str>) {
        let text = match self.prefix.take() {
            Some(prefix) => prefix + text.as_ref(),
            None => text.into(),
        };
        self.out.push(text);
        self.value = None;
    }

    /// Writes the number being read, if there is one.
    fn flush(&mut self) {
        if let Some(value) = self.value.take() {
            self.put(value.text());
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
                let text = Value::text_or_empty(self.value.take()) + "0";
                self.value = Some(Value::Text(text));
            }
            Role::Ones(ones) => {
                self.value = Some(match self.value.take() {
                    None => Value::number(ones),
                    Some(value) => value.join_ones(before, ones),
                });
            }
            Role::OnesEnding(ones, ending) => {
                let value = match self.value.take() {
                    None => Value::number(ones),
                    Some(value) => value.join_ones(before, ones),
                };
                self.put(value.text() + ending);
            }
            Role::Tens(tens) => {
                self.value = Some(match self.value.take() {
                    None => Value::number(tens),
                    Some(value) => value.join(tens),
                });
            }
            Role::TensEnding(tens, ending) => {
                let value = match self.value.take() {
                    None => Value::number(tens),
                    Some(value) => value.join(tens),
                };
                self.put(value.text() + ending);
            }
            Role::Multiplier(zeros) => self.value = Some(Value::Integer(self.multiply(zeros))),
            Role::MultiplierEnding(zeros, ending) => {
                let product = self.multiply(zeros);
                self.put(product + ending);
            }
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
                let text = Value::text_or_empty(self.value.take()) + &digit.to_string().repeat(times);
                self.value = Some(Value::Text(text));
                return 1;
            }
            Role::Point => {
                if number_follows || after.is_some_and(Role::is_decimal) {
                    let text = Value::text_or_empty(self.value.take()) + ".";
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
            Some(value) => self.put(value.text()),
            None => {}
        }
        if let Some(sign) = sign {
            self.prefix = Some(sign.to_string());
        }
        self.value = Some(match shift(digits, 0) {
            Some(integer) => Value::Integer(integer),
            None => Value::Text(digits.to_owned()),
        });
    }

    /// Gives the number being read so many zeros; one that cannot be multiplied is over.
    fn multiply(&mut self, zeros: usize) -> String {
        let product = match self.value.take() {
            None => None,
            Some(Value::Integer(digits)) => Some(shift_last_group(&digits, zeros)),
            Some(Value::Text(text)) => {
                let product = shift(&text, zeros);
                if product.is_none() {
                    self.put(text);
                }
                product
            }
        };
        product.unwrap_or_else(|| format!("1{:0<zeros$}", ""))
    }

    fn percent(&mut self, index: usize, role: Role, current: &str) -> usize {
        let Some(value) = self.value.take() else {
            self.put(current);
            return 0;
        };
        let cent_follows = self.words.get(index + 1) == Some(&"cent");
        match role {
            Role::Per if !cent_follows => {
                self.put(value.text());
                self.put(current);
                0
            }
            Role::Per => {
                self.put(value.text() + "%");
                1
            }
            _ => {
                self.put(value.text() + "%");
                0
            }
        }
    }
}
