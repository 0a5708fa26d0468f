//! Where the files of a tar file are in it (POSIX.1-1988 ustar, POSIX.1-2001 pax, and GNU's long names).
//!
//! Only headers are read, once, and the content stays where it is. Names cannot leave the archive: absolute names are taken as
//! relative, entries with too many `..` are left out, and links are resolved among the entries. The number of entries, the
//! length of names, and the headers that describe other headers are bounded.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use super::tree::Part;

const BLOCK_BYTES: u64 = 512;
/// Largest number of entries. An archive of a thousand images has about fifty thousand.
const MAX_ENTRIES: usize = 1_000_000;
/// Largest sum of the lengths of all names.
const MAX_NAME_BYTES: usize = 128 << 20;
/// Largest length of a header that describes the next one: a long name, or records of pax.
const MAX_EXTENSION_BYTES: u64 = 64 << 10;
/// Links that are followed for one file. `docker save` writes one for a layer that an image shares.
const MAX_LINKS: usize = 8;

/// Why a file cannot be used as a tar file.
#[derive(Debug, thiserror::Error)]
pub(super) enum TarError {
    #[error("it is not a tar file")]
    NotTar,
    #[error("it is cut off: it has {length} bytes, and more than {needed} are needed; get it again")]
    CutOff { length: u64, needed: u64 },
    #[error("its header at byte {0} is damaged; get it again")]
    Header(u64),
    #[error("it has more than {MAX_ENTRIES} entries, or names of more than {MAX_NAME_BYTES} bytes")]
    TooManyEntries,
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// The files of a tar file by their names.
#[derive(Debug)]
pub(super) struct TarIndex {
    file: Arc<File>,
    entries: HashMap<String, Entry>,
}

#[derive(Debug)]
enum Entry {
    File {
        start: u64,
        length: u64,
    },
    /// A link to the entry of this name.
    Link(String),
}

/// What extension headers said about the next entry.
#[derive(Default)]
struct Extension {
    name: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
}

impl TarIndex {
    pub(super) fn read(file: File) -> Result<Self, TarError> {
        let length = file.metadata()?.len();
        let mut index = Self { file: Arc::new(file), entries: HashMap::new() };
        let (mut at, mut extension, mut name_bytes) = (0, Extension::default(), 0);
        while at < length {
            let needed = at + BLOCK_BYTES;
            if needed > length {
                return Err(if at == 0 { TarError::NotTar } else { TarError::CutOff { length, needed } });
            }
            let mut header = [0; BLOCK_BYTES as usize];
            index.file.read_exact_at(&mut header, at)?;
            if header.iter().all(|byte| *byte == 0) {
                break;
            }
            if !has_right_checksum(&header) {
                return Err(if at == 0 { TarError::NotTar } else { TarError::Header(at) });
            }
            let kind = header[156];
            // Entries of these kinds have no content, whatever their size says: links, devices, folders and pipes.
            let size = match kind {
                b'1'..=b'6' => 0,
                _ => extension.size.or_else(|| number(&header[124..136])).ok_or(TarError::Header(at))?,
            };
            let start = needed;
            let end = start.checked_add(size).ok_or(TarError::Header(at))?;
            if end > length {
                return Err(TarError::CutOff { length, needed: end });
            }
            match kind {
                b'x' | b'L' | b'K' if size <= MAX_EXTENSION_BYTES => {
                    let mut bytes = vec![0; size as usize];
                    index.file.read_exact_at(&mut bytes, start)?;
                    extension.add(kind, &bytes);
                }
                b'x' | b'L' | b'K' => return Err(TarError::Header(at)),
                b'g' => {}
                _ => {
                    let described = std::mem::take(&mut extension);
                    name_bytes += index.add(&header, described, start, size);
                    if index.entries.len() > MAX_ENTRIES || name_bytes > MAX_NAME_BYTES {
                        return Err(TarError::TooManyEntries);
                    }
                }
            }
            at = end.div_ceil(BLOCK_BYTES) * BLOCK_BYTES;
        }
        Ok(index)
    }

    /// The file at `path`, which is relative; follows links within the archive.
    pub(super) fn file(&self, path: &str) -> Option<Part> {
        let mut path = path;
        for _ in 0..=MAX_LINKS {
            match self.entries.get(path)? {
                Entry::File { start, length } => return Some(Part::new(self.file.clone(), *start, *length)),
                Entry::Link(target) => path = target,
            }
        }
        None
    }

    /// Adds an entry, and returns the length of its names in bytes.
    fn add(&mut self, header: &[u8], extension: Extension, start: u64, length: u64) -> usize {
        let name = extension.name.unwrap_or_else(|| name_in(header));
        let Some(name) = normal("", &name) else { return 0 };
        let entry = match header[156] {
            0 | b'0' | b'7' => Entry::File { start, length },
            kind @ (b'1' | b'2') => {
                let link = extension.link.unwrap_or_else(|| text(&header[157..257]).to_vec());
                // A hard link names an entry of the archive, a symbolic link one relative to its folder.
                let folder = name.rsplit_once('/').map_or("", |(folder, _)| folder);
                match normal(if kind == b'2' { folder } else { "" }, &link) {
                    Some(target) => Entry::Link(target),
                    None => return 0,
                }
            }
            _ => return 0,
        };
        let link_bytes = if let Entry::Link(target) = &entry { target.len() } else { 0 };
        let bytes = name.len() + link_bytes;
        // As when it is extracted, the last entry of a name counts.
        self.entries.insert(name, entry);
        bytes
    }
}

impl Extension {
    fn add(&mut self, kind: u8, bytes: &[u8]) {
        match kind {
            b'L' => self.name = Some(text(bytes).to_vec()),
            b'K' => self.link = Some(text(bytes).to_vec()),
            _ => self.add_records(bytes),
        }
    }

    /// Reads records of the form `LENGTH KEY=VALUE\n`.
    fn add_records(&mut self, mut bytes: &[u8]) {
        while let Some(space) = bytes.iter().position(|byte| *byte == b' ') {
            let length = str::from_utf8(&bytes[..space]).ok().and_then(|digits| digits.parse::<usize>().ok());
            let Some(record) = length.and_then(|length| bytes.get(space + 1..length)) else { return };
            bytes = &bytes[space + 1 + record.len()..];
            let record = record.strip_suffix(b"\n").unwrap_or(record);
            let Some(equals) = record.iter().position(|byte| *byte == b'=') else { continue };
            let (key, value) = (&record[..equals], &record[equals + 1..]);
            match key {
                b"path" => self.name = Some(value.to_vec()),
                b"linkpath" => self.link = Some(value.to_vec()),
                b"size" => self.size = str::from_utf8(value).ok().and_then(|digits| digits.parse().ok()),
                _ => {}
            }
        }
    }
}

/// The bytes before the first NUL.
fn text(field: &[u8]) -> &[u8] {
    field.split(|byte| *byte == 0).next().unwrap_or_default()
}

/// The name in the header. The prefix is one of ustar; GNU has other fields in its place.
fn name_in(header: &[u8]) -> Vec<u8> {
    let (name, prefix) = (text(&header[..100]), text(&header[345..500]));
    if &header[257..263] == b"ustar\0" && !prefix.is_empty() { [prefix, b"/", name].concat() } else { name.to_vec() }
}

/// The path relative to the root of the archive, of a name that is relative to `folder`. `None` if it leaves the archive, is
/// empty or is not UTF-8.
fn normal(folder: &str, name: &[u8]) -> Option<String> {
    let name = str::from_utf8(name).ok()?;
    let folder = if name.starts_with('/') { "" } else { folder };
    let mut parts: Vec<&str> = Vec::new();
    for part in folder.split('/').chain(name.split('/')) {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()?),
            part => parts.push(part),
        }
    }
    (!parts.is_empty()).then(|| parts.join("/"))
}

/// A number in octal digits, or in base 256 if the first bit is set.
fn number(field: &[u8]) -> Option<u64> {
    if let Some((first, rest)) = field.split_first().filter(|(first, _)| **first & 0x80 != 0) {
        let bytes = [&[first & 0x7f], rest].concat();
        let (high, low) = bytes.split_at(bytes.len().checked_sub(8)?);
        return high.iter().all(|byte| *byte == 0).then(|| u64::from_be_bytes(low.try_into().unwrap_or_default()));
    }
    let digits = str::from_utf8(text(field)).ok()?.trim();
    if digits.is_empty() { Some(0) } else { u64::from_str_radix(digits, 8).ok() }
}

/// The sum of all bytes, with spaces in place of the checksum itself. Some programs have added signed bytes.
fn has_right_checksum(header: &[u8]) -> bool {
    let byte = |at: usize| if (148..156).contains(&at) { b' ' } else { header[at] };
    let unsigned: u64 = (0..header.len()).map(|at| u64::from(byte(at))).sum();
    let signed: i64 = (0..header.len()).map(|at| i64::from(byte(at).cast_signed())).sum();
    number(&header[148..156]).is_some_and(|stored| stored == unsigned || i64::try_from(stored) == Ok(signed))
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    /// An entry with its kind, name, link and content.
    fn entry(kind: u8, name: &str, link: &str, content: &[u8]) -> Vec<u8> {
        let mut header = [0; 512];
        header[..name.len()].copy_from_slice(name.as_bytes());
        header[124..136].copy_from_slice(format!("{:011o}\0", content.len()).as_bytes());
        header[148..156].fill(b' ');
        header[156] = kind;
        header[157..157 + link.len()].copy_from_slice(link.as_bytes());
        header[257..263].copy_from_slice(b"ustar\0");
        let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        let padding = vec![0; content.len().next_multiple_of(512) - content.len()];
        [&header[..], content, &padding].concat()
    }

    fn index(bytes: &[u8]) -> Result<TarIndex, TarError> {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        TarIndex::read(file)
    }

    fn content(index: &TarIndex, path: &str) -> Option<Vec<u8>> {
        index.file(path).map(|part| part.read(1 << 20).unwrap().to_vec())
    }

    #[test]
    fn files_are_found_by_ustar_pax_and_gnu_names() {
        let long = format!("blobs/sha256/{}", "a".repeat(150));
        let record = format!(" path={long}x\n");
        let record = format!("{}{record}", record.len() + 3);
        let archive = [
            entry(b'0', "./index.json", "", b"{}"),
            entry(b'L', "././@LongLink", "", format!("{long}\0").as_bytes()),
            entry(b'0', &long[..99], "", b"gnu"),
            entry(b'x', "pax", "", record.as_bytes()),
            entry(b'0', "short", "", b"pax"),
            entry(b'0', "index.json", "", b"[]"),
            vec![0; 1024],
        ];
        let index = index(&archive.concat()).unwrap();
        assert_eq!(content(&index, "index.json").unwrap(), b"[]", "the last one counts");
        assert_eq!(content(&index, &long).unwrap(), b"gnu");
        assert_eq!(content(&index, &format!("{long}x")).unwrap(), b"pax");
        assert_eq!(content(&index, "short"), None);
    }

    #[test]
    fn names_and_links_stay_in_the_archive() {
        let archive = [
            entry(b'0', "/etc/passwd", "", b"absolute"),
            entry(b'0', "a/../../up", "", b"up"),
            entry(b'0', "one/layer.tar", "", b"layer"),
            entry(b'2', "two/layer.tar", "../one/layer.tar", b""),
            entry(b'1', "three", "one/layer.tar", b""),
            entry(b'2', "out", "../../etc/shadow", b""),
            entry(b'2', "loop", "loop", b""),
            entry(b'5', "folder", "", b""),
        ];
        let index = index(&archive.concat()).unwrap();
        assert_eq!(content(&index, "etc/passwd").unwrap(), b"absolute");
        for same in ["one/layer.tar", "two/layer.tar", "three"] {
            assert_eq!(content(&index, same).unwrap(), b"layer", "{same}");
        }
        for absent in ["up", "a/../../up", "out", "loop", "folder", "/etc/passwd"] {
            assert_eq!(content(&index, absent), None, "{absent}");
        }
    }

    #[test]
    fn damaged_and_hostile_archives_are_refused() {
        let good = entry(b'0', "file", "", &[7; 700]);
        assert!(matches!(index(&good[..900]), Err(TarError::CutOff { .. })));
        assert!(matches!(index(&[&good[..], b"x"].concat()), Err(TarError::CutOff { .. })));
        assert!(matches!(index(&[1; 2048]), Err(TarError::NotTar)));
        assert!(matches!(index(b"short"), Err(TarError::NotTar)));
        assert!(index(b"").unwrap().entries.is_empty());
        assert!(matches!(index(&[&good[..], &[9; 512]].concat()), Err(TarError::Header(1536))));
        let mut huge = entry(b'0', "file", "", b"");
        huge[124..136].copy_from_slice(&[0xff; 12]);
        assert!(index(&huge).is_err());
        let extension = entry(b'L', "long", "", &vec![b'a'; (MAX_EXTENSION_BYTES + 1) as usize]);
        assert!(matches!(index(&extension), Err(TarError::Header(0))));
        for records in ["999999 path=x\n", "x path=y\n", "0 a=b\n", "5", " ", "6 path\n"] {
            assert!(index(&entry(b'x', "pax", "", records.as_bytes())).is_ok(), "{records}");
        }
    }

    #[test]
    fn sizes_in_base_256_are_read() {
        assert_eq!(number(&[0x80, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0]), Some(1 << 32));
        assert_eq!(number(&[0xff; 12]), None);
        assert_eq!(number(b"00000000017\0"), Some(15));
        assert_eq!(number(b"           \0"), Some(0));
        assert_eq!(number(b"9\0"), None);
    }
}
