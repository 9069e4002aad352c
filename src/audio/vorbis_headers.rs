//! Vorbis headers, read before symphonia sees them: a bound on what its set-up may allocate.
//!
//! Source: the Vorbis I specification, section 4.2.

/// Most values in all code books together. Real encoders stay far below a million; a hostile set-up header
/// of a few kilobytes can ask for a billion.
pub(super) const CODE_BOOK_VALUES_MAX: u64 = 4 << 20; // 16 MiB as f32

/// symphonia 0.6.1 puts the channels of a coupled pair other than the first into the wrong places, so that
/// more than two channels come out as something else than went in, without an error. Refused, until that is
/// mended.
pub(super) const CHANNELS_MAX: u8 = 2;

/// Bytes of the identification header.
pub(super) const IDENTIFICATION_BYTES: usize = 30;

/// Refuses headers that symphonia must not see.
///
/// # Errors
/// Why.
pub(super) fn check_headers(identification: &[u8], set_up: &[u8]) -> Result<(), String> {
    let channels = identification.get(11).copied().unwrap_or_default();
    if channels > CHANNELS_MAX {
        return Err(format!("Vorbis of {channels} channels"));
    }
    let values = code_book_values(set_up);
    if values > CODE_BOOK_VALUES_MAX {
        return Err(format!("its code books ask for at least {values} values"));
    }
    Ok(())
}

/// How many values the code books of a set-up header ask for, at least; what cannot be read is left to the
/// decoder.
pub(super) fn code_book_values(set_up: &[u8]) -> u64 {
    let mut bits = Bits {
        bytes: set_up.get(7..).unwrap_or_default(),
        at: 0,
    };
    let mut values = 0;
    let books = bits.take(8).map_or(0, |count| count + 1);
    for _ in 0..books {
        match code_book(&mut bits) {
            Some(more) => values += more,
            None => break,
        }
        if values > CODE_BOOK_VALUES_MAX {
            break;
        }
    }
    values
}

/// Steps over one code book; says how many values it asks for.
fn code_book(bits: &mut Bits<'_>) -> Option<u64> {
    if bits.take(24)? != 0x56_4342 {
        return None;
    }
    let dimensions = bits.take(16)?;
    let entries = bits.take(24)?;
    if bits.take(1)? == 1 {
        bits.take(5)?; // lengths in order: runs of entries
        let mut entry = 0;
        while entry < entries {
            let width = u64::BITS - (entries - entry).leading_zeros();
            entry += bits.take(width)?;
        }
    } else if bits.take(1)? == 1 {
        for _ in 0..entries {
            if bits.take(1)? == 1 {
                bits.take(5)?;
            }
        }
    } else {
        bits.skip(5 * entries)?;
    }
    let lookup = bits.take(4)?;
    if lookup == 0 {
        return Some(entries);
    }
    bits.skip(64)?; // smallest value and step
    let width = bits.take(4)? + 1;
    bits.take(1)?;
    let values = match lookup {
        1 => largest_root(entries, dimensions),
        _ => entries * dimensions,
    };
    bits.skip(width * values)?;
    Some(entries * (1 + dimensions))
}

/// The largest number whose power to `dimensions` is at most `entries`.
fn largest_root(entries: u64, dimensions: u64) -> u64 {
    if dimensions == 1 {
        return entries;
    }
    let power = |base: u64| (0..dimensions.min(64)).try_fold(1_u64, |product, _| product.checked_mul(base));
    let mut root = 0;
    while dimensions > 0 && power(root + 1).is_some_and(|product| product <= entries) && root < entries {
        root += 1;
    }
    root
}

/// Reads bits from the least significant end, as Vorbis packs them.
struct Bits<'a> {
    bytes: &'a [u8],
    at: u64,
}

impl Bits<'_> {
    fn take(&mut self, width: u32) -> Option<u64> {
        let mut value = 0;
        for bit in 0..width {
            let byte = self.bytes.get(usize::try_from(self.at / 8).ok()?)?;
            value |= u64::from(byte >> (self.at % 8) & 1) << bit;
            self.at += 1;
        }
        Some(value)
    }

    fn skip(&mut self, width: u64) -> Option<()> {
        self.at = self.at.checked_add(width)?;
        (self.at <= self.bytes.len() as u64 * 8).then_some(())
    }
}
