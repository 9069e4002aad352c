//! Headers of a record, read by name.

use bytes::Bytes;
use jiff::Timestamp;

use super::TraceContext;

/// The headers of a record. Names are compared without regard to ASCII case, because clients write both
/// `content-type` and `Content-Type`. When a name repeats the last one counts, as for Kafka's own `lastHeader`; a
/// header without a value counts as absent, and so takes back an earlier one of its name.
#[derive(Clone, Copy, Debug)]
pub struct Headers<'a>(pub &'a [(String, Option<Bytes>)]);

impl<'a> Headers<'a> {
    /// The value of the last header of this name.
    pub fn get(&self, name: &str) -> Option<&'a Bytes> {
        let (_, value) = self
            .0
            .iter()
            .rev()
            .find(|(key, _)| key.eq_ignore_ascii_case(name))?;
        value.as_ref()
    }

    /// The value as text.
    ///
    /// # Errors
    /// When it is not UTF-8; CloudEvents headers must be.
    pub fn text(&self, name: &str) -> Result<Option<&'a str>, std::str::Utf8Error> {
        self.get(name)
            .map(|value| std::str::from_utf8(value))
            .transpose()
    }

    /// How many headers have this name.
    pub fn count(&self, name: &str) -> usize {
        self.0
            .iter()
            .filter(|(key, _)| key.eq_ignore_ascii_case(name))
            .count()
    }
}

/// A header with a value.
pub fn header(name: impl Into<String>, value: impl Into<Bytes>) -> (String, Option<Bytes>) {
    (name.into(), Some(value.into()))
}

/// The headers that every event of ours begins with: CloudEvents attributes of binary mode, `content-type: …`, trace.
pub fn cloud_event_headers(
    kind: &'static str,
    id: &str,
    source: &str,
    time: Timestamp,
    content_type: Option<&str>,
    trace: Option<&TraceContext>,
) -> Vec<(String, Option<Bytes>)> {
    let mut headers = vec![
        header("ce_specversion", "1.0"),
        header("ce_type", kind),
        header("ce_id", id.to_owned()),
        header("ce_source", source.to_owned()),
        header("ce_time", time.to_string()),
    ];
    headers.extend(content_type.map(|value| header("content-type", value.to_owned())));
    headers.extend(trace.into_iter().flat_map(TraceContext::to_headers));
    headers
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_header_of_a_name_counts_whatever_its_case() {
        let list = [
            header("ce_id", "first"),
            header("Content-Type", "audio/wav"),
            header("CE_ID", "second"),
            header("ce_task", "asr"),
            ("ce_task".to_owned(), None),
            header("ce_subject", &b"\xff"[..]),
        ];
        let headers = Headers(&list);

        assert_eq!(headers.text("ce_id"), Ok(Some("second")));
        assert_eq!(headers.count("ce_id"), 2);
        assert_eq!(headers.text("content-type"), Ok(Some("audio/wav")));
        assert_eq!(headers.get("ce_task"), None);
        assert!(headers.text("ce_subject").is_err());
        assert_eq!(headers.get("absent"), None);
    }
}
