//! Damaged containers made readable for symphonia's demuxers, which give up at the first size that is wrong.
//!
//! The outline of a file, its atoms, chunks or elements, is walked without decoding anything. What the end of
//! the bytes cuts gets the size that is there, what is no outline is left out and counted, and files that
//! stand one behind the other are separated.
//!
//! Source: ISO/IEC 14496-12 (atoms), EBML in RFC 8794 (elements), RIFF and AIFF (chunks).

use super::Container;

/// A file, or the part of one that can be read.
pub(super) struct Mended {
    /// One file each.
    pub(super) files: Vec<Vec<u8>>,
    /// Bytes that are left out.
    pub(super) lost: usize,
    /// The last part of the outline goes on past the end of the bytes, by so many bytes.
    pub(super) cut: bool,
    pub(super) missing: u64,
}

/// Makes the bytes of a container readable.
pub(super) fn mend(container: Container, bytes: &[u8]) -> Mended {
    match container {
        Container::Mp4 => mp4(bytes),
        Container::Matroska => matroska(bytes),
        Container::Aiff => chunk_files(bytes, 12, 4),
        _ => chunk_files(bytes, 8, 8),
    }
}

/// A big-endian number of up to eight bytes.
fn number(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(0, |number, byte| number << 8 | u64::from(*byte))
}

/// Bytes that do not matter: none, or zeros.
fn is_padding(bytes: &[u8]) -> bool {
    bytes.iter().all(|byte| *byte == 0)
}

fn is_name(name: &[u8]) -> bool {
    name.iter()
        .all(|byte| (0x20..0x7f).contains(byte) || *byte == 0xa9)
}

/// AIFF and CAF, one file or several.
fn chunk_files(bytes: &[u8], head: usize, size_bytes: usize) -> Mended {
    let (mut mended, mut next) = chunks(bytes, head, size_bytes);
    while let Some(at) = next {
        let (more, further) = chunks(&bytes[at..], head, size_bytes);
        mended.files.extend(more.files);
        mended.lost += more.lost;
        mended.cut |= more.cut;
        mended.missing += more.missing;
        next = further.map(|further| at + further);
    }
    mended
}

/// AIFF and CAF: chunks of a name of four bytes and a size of `size_bytes`, behind a head. Also says where
/// another file begins.
fn chunks(bytes: &[u8], head: usize, size_bytes: usize) -> (Mended, Option<usize>) {
    let mut file = bytes.to_vec();
    let mut at = head;
    let (mut cut, mut missing) = (false, 0);
    let (mut lost, mut next) = (0, None);
    while let Some(header) = bytes.get(at..at + 4 + size_bytes) {
        let another = match size_bytes {
            4 => header.starts_with(b"FORM"),
            _ => header.starts_with(b"caff\0\x01"),
        };
        if another {
            next = Some(at);
            break;
        }
        if !is_name(&header[..4]) {
            break;
        }
        let start = at + 4 + size_bytes;
        let size = number(&header[4..]);
        let there = (bytes.len() - start) as u64;
        if size_bytes == 8 && size == u64::MAX {
            at = bytes.len(); // the length of CAF data is not known
            break;
        }
        if size > there {
            (cut, missing) = (true, size - there);
            let sized = there.to_be_bytes();
            file[at + 4..start].copy_from_slice(&sized[8 - size_bytes..]);
            at = bytes.len();
            break;
        }
        let padding = if size_bytes == 4 { size % 2 } else { 0 };
        at = (start + size as usize + padding as usize).min(bytes.len());
    }
    let rest = &bytes[at.min(bytes.len())..];
    if next.is_none() && !is_padding(rest) {
        lost = rest.len();
    }
    file.truncate(at.max(head));
    if head == 12 && file.len() >= 12 {
        let size = (file.len() as u64 - 8).to_be_bytes();
        file[4..8].copy_from_slice(&size[4..]);
    }
    let mended = Mended {
        files: vec![file],
        lost,
        cut,
        missing,
    };
    (mended, next)
}

/// MP4: atoms; a file begins with `ftyp`.
fn mp4(bytes: &[u8]) -> Mended {
    let mut files: Vec<Vec<u8>> = Vec::new();
    let (mut cut, mut missing) = (false, 0);
    let mut at = 0;
    while let Some(header) = bytes.get(at..at + 8) {
        let rest = &bytes[at..];
        let (head, size) = match number(&header[..4]) {
            0 => (8, rest.len() as u64),
            1 => (16, rest.get(8..16).map_or(0, number)),
            size => (8, size),
        };
        if !is_name(&header[4..]) || size < head {
            break;
        }
        if files.is_empty() || (&header[4..] == b"ftyp" && at > 0) {
            files.push(Vec::new());
        }
        let Some(file) = files.last_mut() else {
            break;
        };
        let there = size.min(rest.len() as u64) as usize;
        let place = file.len();
        file.extend_from_slice(&rest[..there]);
        if there as u64 != size {
            (cut, missing) = (true, size - there as u64);
            // Sample tables that are cut are left as they are: their count says that they are.
            let sized = (there as u64).to_be_bytes();
            match head {
                16 if there >= 16 => file[place + 8..place + 16].copy_from_slice(&sized),
                _ => file[place..place + 4].copy_from_slice(&sized[4..]),
            }
        }
        at += there;
    }
    let rest = &bytes[at.min(bytes.len())..];
    let lost = if is_padding(rest) { 0 } else { rest.len() };
    if files.is_empty() {
        files.push(bytes.to_vec());
    }
    Mended {
        files,
        lost,
        cut,
        missing,
    }
}

const EBML: [u8; 4] = [0x1a, 0x45, 0xdf, 0xa3];
const SEGMENT: u64 = 0x1853_8067;
const CLUSTER: u64 = 0x1f43_b675;
const CLUSTER_ID: [u8; 4] = [0x1f, 0x43, 0xb6, 0x75];

/// The elements of a segment beside clusters: SeekHead, Info, Tracks, Cues, Chapters, Attachments, Tags,
/// Void, CRC-32.
const IN_SEGMENT: [u64; 9] = [
    0x114d_9b74,
    0x1549_a966,
    0x1654_ae6b,
    0x1c53_bb6b,
    0x1043_a770,
    0x1941_a469,
    0x1254_c367,
    0xec,
    0xbf,
];

/// The elements of a cluster: Timestamp, SilentTracks, Position, PrevSize, SimpleBlock, BlockGroup,
/// EncryptedBlock, Void, CRC-32.
const IN_CLUSTER: [u64; 9] = [0xe7, 0x5854, 0xa7, 0xab, 0xa3, 0xa0, 0xaf, 0xec, 0xbf];

/// The head of an element: its id, its size if that is known, and the length of both.
fn element(bytes: &[u8]) -> Option<(u64, Option<u64>, usize)> {
    let id_bytes = bytes.first()?.leading_zeros() as usize + 1;
    let id = number(bytes.get(..id_bytes).filter(|_| id_bytes <= 4)?);
    let size_bytes = bytes.get(id_bytes)?.leading_zeros() as usize + 1;
    let size = bytes
        .get(id_bytes..id_bytes + size_bytes)
        .filter(|_| size_bytes <= 8)?;
    let value_max = (1_u64 << (7 * size_bytes)) - 1;
    let value = number(size) & value_max;
    Some((id, (value != value_max).then_some(value), id_bytes + size_bytes))
}

/// Matroska: an EBML header, and a segment whose size is set to unknown, as are those of its clusters.
fn matroska(bytes: &[u8]) -> Mended {
    let mut mended = Mended {
        files: Vec::new(),
        lost: 0,
        cut: false,
        missing: 0,
    };
    let mut rest = bytes;
    while !rest.is_empty() {
        // A further file: the mark, a size, and the first element of such a header.
        let next = rest.get(4..).and_then(|rest| {
            rest.windows(8).position(|eight| {
                eight.starts_with(&EBML) && eight[4..].windows(2).any(|id| id == [0x42, 0x86])
            })
        });
        let (file, after) = rest.split_at(next.map_or(rest.len(), |next| next + 4));
        matroska_file(file, &mut mended);
        rest = after;
    }
    mended
}

fn matroska_file(bytes: &[u8], mended: &mut Mended) {
    let head = element(bytes).filter(|(_, size, _)| size.is_some_and(|size| size < 1_024));
    let segment_at = head.map_or(0, |(_, size, head)| head + size.unwrap_or_default() as usize);
    let Some((SEGMENT, _, segment_head)) = bytes.get(segment_at..).and_then(element) else {
        mended.files.push(bytes.to_vec());
        return;
    };
    let mut file = bytes[..segment_at].to_vec();
    let unknown = [0x01, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff];
    file.extend_from_slice(&[0x18, 0x53, 0x80, 0x67]);
    file.extend_from_slice(&unknown);

    let mut at = segment_at + segment_head;
    let mut in_cluster = false;
    while let Some(rest) = bytes.get(at..).filter(|rest| !is_padding(rest)) {
        match element(rest) {
            Some((CLUSTER, _, head)) => {
                file.extend_from_slice(&CLUSTER_ID);
                file.extend_from_slice(&unknown);
                in_cluster = true;
                at += head;
            }
            Some((id, Some(size), head)) if is_known(id, in_cluster) => {
                let end = usize::try_from(size).ok().and_then(|size| head.checked_add(size));
                match end.and_then(|end| rest.get(..end)) {
                    Some(whole) => {
                        in_cluster &= IN_CLUSTER.contains(&id);
                        // Places of other elements are not right any more, and nobody seeks.
                        if !matches!(id, 0x114d_9b74 | 0x1c53_bb6b) {
                            file.extend_from_slice(whole);
                        }
                        at += whole.len();
                    }
                    None if !rest[1..].windows(4).any(|id| id == CLUSTER_ID) => {
                        mended.cut = true;
                        mended.lost += rest.len();
                        break;
                    }
                    None => at += skip(rest, mended),
                }
            }
            _ => at += skip(rest, mended),
        }
    }
    mended.files.push(file);
}

fn is_known(id: u64, in_cluster: bool) -> bool {
    IN_SEGMENT.contains(&id) || (in_cluster && IN_CLUSTER.contains(&id))
}

/// How far it is to the next cluster.
fn skip(rest: &[u8], mended: &mut Mended) -> usize {
    let next = rest[1..].windows(4).position(|id| id == CLUSTER_ID);
    let len = next.map_or(rest.len(), |next| next + 1);
    mended.lost += len;
    len
}

#[cfg(test)]
mod tests {
    use super::*;

    fn atom(name: &[u8; 4], size: u32, body: &[u8]) -> Vec<u8> {
        [&size.to_be_bytes()[..], name, body].concat()
    }

    #[test]
    fn what_the_end_cuts_gets_the_size_that_is_there() {
        let whole = [atom(b"ftyp", 12, b"M4A "), atom(b"mdat", 100, b"sound")].concat();

        let mended = mend(Container::Mp4, &whole);

        assert!(mended.cut);
        assert_eq!(mended.files[0][12..16], [0, 0, 0, 13]);
        let aiff = [&b"FORM\0\0\x01\0AIFFSSND\0\0\x01\0"[..], b"abcd"].concat();
        let mended = mend(Container::Aiff, &aiff);
        assert!(mended.cut);
        assert_eq!(mended.files[0], b"FORM\0\0\0\x10AIFFSSND\0\0\0\x04abcd");
    }

    #[test]
    fn files_that_stand_one_behind_the_other_are_separated() {
        let file = [atom(b"ftyp", 12, b"M4A "), atom(b"mdat", 13, b"sound")].concat();

        let mended = mend(Container::Mp4, &[&file[..], &file, b"\0\x01junk"].concat());

        assert_eq!(mended.files, [file.clone(), file]);
        assert_eq!((mended.lost, mended.cut), (6, false));
    }

    #[test]
    fn a_hole_in_a_segment_costs_what_stands_before_the_next_cluster() {
        let head = [&EBML[..], &[0x84, 0x42, 0x86, 0x81, 1]].concat();
        let cluster = [&CLUSTER_ID[..], &[0x86, 0xe7, 0x81, 7, 0xa3, 0x81, 9]].concat();
        let segment = [
            &[0x18, 0x53, 0x80, 0x67, 0xff][..],
            &cluster,
            &[0x55; 9],
            &cluster,
        ]
        .concat();

        let mended = mend(Container::Matroska, &[head.clone(), segment.clone()].concat());
        let joined = mend(
            Container::Matroska,
            &[&head[..], &segment, &head, &segment].concat(),
        );

        assert_eq!((mended.lost, mended.cut), (9, false));
        let clusters = mended.files[0].windows(4).filter(|id| *id == CLUSTER_ID).count();
        assert_eq!(clusters, 2);
        assert_eq!(joined.files.len(), 2);
    }
}
