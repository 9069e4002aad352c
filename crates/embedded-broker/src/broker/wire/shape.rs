//! The outline of a request: enough of Kafka's schemas to tell, without allocating, whether bytes are what
//! they claim.

use crate::broker::limits::REQUEST_ELEMENTS_MAX;

/// Why bytes are not a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Misshapen {
    /// A length points beyond the end.
    #[error("a length at byte {at} points beyond the end of the request")]
    Truncated {
        /// Position in the body.
        at: usize,
    },
    /// A length is negative where none may be.
    #[error("the length {length} at byte {at} is negative")]
    Negative {
        /// Position in the body.
        at: usize,
        /// What was found.
        length: i64,
    },
    /// A variable-length number does not end.
    #[error("the number at byte {at} is longer than 32 bits")]
    Number {
        /// Position in the body.
        at: usize,
    },
    /// More elements than any client needs.
    #[error("the request has more than {REQUEST_ELEMENTS_MAX} elements")]
    TooManyElements,
    /// A tagged field that only brokers send to each other.
    #[error("the tagged field {tag} at byte {at} is not for clients")]
    ReservedTag {
        /// Position in the body.
        at: usize,
        /// The tag.
        tag: u32,
    },
}

/// What a field looks like on the wire.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Kind {
    /// So many bytes.
    Fixed(usize),
    /// A string, perhaps null.
    Text,
    /// Bytes, perhaps null.
    Blob,
    /// An array, perhaps null, of structures; `Items` of plain values have no tagged fields.
    Structs(&'static [Field]),
    /// An array of plain values.
    Items(&'static Field),
}

/// One field and the versions that have it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Field {
    pub(super) kind: Kind,
    pub(super) since: i16,
    pub(super) until: i16,
}

impl Field {
    /// A field of every version.
    pub(crate) const fn always(kind: Kind) -> Self {
        Self {
            kind,
            since: 0,
            until: i16::MAX,
        }
    }

    /// A field that came with a version.
    pub(crate) const fn since(since: i16, kind: Kind) -> Self {
        Self {
            kind,
            since,
            until: i16::MAX,
        }
    }

    /// A field whose last version is `until`.
    pub(crate) const fn until(until: i16, kind: Kind) -> Self {
        Self {
            kind,
            since: 0,
            until,
        }
    }
}

/// The outline of one request type, all versions.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    /// First version with compact lengths and tagged fields.
    pub(crate) flexible_since: i16,
    /// Tags below this number have a meaning between brokers and are refused from clients.
    pub(crate) reserved_tags: u32,
    /// The fields in order.
    pub(crate) fields: &'static [Field],
}

impl Shape {
    /// Walks `body` as `version` of this request; answers how many bytes the request takes.
    ///
    /// # Errors
    /// [`Misshapen`] says what does not fit, and where.
    pub(crate) fn measure(&self, body: &[u8], version: i16) -> Result<usize, Misshapen> {
        let mut walk = Walk {
            bytes: body,
            at: 0,
            version,
            flexible: version >= self.flexible_since,
            reserved_tags: self.reserved_tags,
            elements: 0,
        };
        walk.structure(self.fields)?;
        Ok(walk.at)
    }
}

/// Walks the tagged fields of a request header; answers how many bytes they take.
///
/// # Errors
/// [`Misshapen`] when they do not fit.
pub(crate) fn measure_tags(bytes: &[u8]) -> Result<usize, Misshapen> {
    let mut walk = Walk {
        bytes,
        at: 0,
        version: 0,
        flexible: true,
        reserved_tags: 0,
        elements: 0,
    };
    walk.tags()?;
    Ok(walk.at)
}

struct Walk<'a> {
    bytes: &'a [u8],
    at: usize,
    version: i16,
    flexible: bool,
    reserved_tags: u32,
    elements: usize,
}

impl Walk<'_> {
    fn structure(&mut self, fields: &[Field]) -> Result<(), Misshapen> {
        for field in fields {
            if (field.since..=field.until).contains(&self.version) {
                self.value(field.kind)?;
            }
        }
        if self.flexible { self.tags() } else { Ok(()) }
    }

    fn value(&mut self, kind: Kind) -> Result<(), Misshapen> {
        match kind {
            Kind::Fixed(bytes) => self.skip(bytes),
            Kind::Text => {
                let length = if self.flexible {
                    self.compact_length()?
                } else {
                    self.short_length()?
                };
                self.skip(length.unwrap_or(0))
            }
            Kind::Blob => {
                let length = self.array_length()?;
                self.skip(length.unwrap_or(0))
            }
            Kind::Structs(fields) => self.elements(|walk| walk.structure(fields)),
            Kind::Items(field) => self.elements(|walk| walk.value(field.kind)),
        }
    }

    fn elements(
        &mut self,
        mut element: impl FnMut(&mut Self) -> Result<(), Misshapen>,
    ) -> Result<(), Misshapen> {
        let at = self.at;
        let count = self.array_length()?.unwrap_or(0);
        // Every element takes at least a byte, so a larger count is a lie that decoding would pay for.
        if count > self.bytes.len() - self.at {
            return Err(Misshapen::Truncated { at });
        }
        self.count(count)?;
        for _ in 0..count {
            element(self)?;
        }
        Ok(())
    }

    fn tags(&mut self) -> Result<(), Misshapen> {
        let count = self.varint()?;
        self.count(count as usize)?;
        for _ in 0..count {
            let at = self.at;
            let tag = self.varint()?;
            if tag < self.reserved_tags {
                return Err(Misshapen::ReservedTag { at, tag });
            }
            let size = self.varint()?;
            self.skip(size as usize)?;
        }
        Ok(())
    }

    fn count(&mut self, more: usize) -> Result<(), Misshapen> {
        self.elements = self.elements.saturating_add(more);
        if self.elements > REQUEST_ELEMENTS_MAX {
            return Err(Misshapen::TooManyElements);
        }
        Ok(())
    }

    fn short_length(&mut self) -> Result<Option<usize>, Misshapen> {
        let at = self.at;
        let length = i16::from_be_bytes(self.take()?);
        Self::length(i64::from(length), at)
    }

    fn array_length(&mut self) -> Result<Option<usize>, Misshapen> {
        if self.flexible {
            return self.compact_length();
        }
        let at = self.at;
        let length = i32::from_be_bytes(self.take()?);
        Self::length(i64::from(length), at)
    }

    fn compact_length(&mut self) -> Result<Option<usize>, Misshapen> {
        Ok((self.varint()? as usize).checked_sub(1))
    }

    /// A length of -1 means null.
    fn length(length: i64, at: usize) -> Result<Option<usize>, Misshapen> {
        match usize::try_from(length) {
            Ok(length) => Ok(Some(length)),
            Err(_) if length == -1 => Ok(None),
            Err(_) => Err(Misshapen::Negative { at, length }),
        }
    }

    fn varint(&mut self) -> Result<u32, Misshapen> {
        let at = self.at;
        let mut value = 0u64;
        for place in 0..5 {
            let [byte] = self.take()?;
            value |= u64::from(byte & 0x7f) << (7 * place);
            if byte < 0x80 {
                return u32::try_from(value).map_err(|_| Misshapen::Number { at });
            }
        }
        Err(Misshapen::Number { at })
    }

    fn take<const N: usize>(&mut self) -> Result<[u8; N], Misshapen> {
        let at = self.at;
        self.skip(N)?;
        let mut taken = [0; N];
        taken.copy_from_slice(&self.bytes[at..at + N]);
        Ok(taken)
    }

    fn skip(&mut self, bytes: usize) -> Result<(), Misshapen> {
        if bytes > self.bytes.len() - self.at {
            return Err(Misshapen::Truncated { at: self.at });
        }
        self.at += bytes;
        Ok(())
    }
}
