//! Where a RESP value ends.

/// Cuts a stream of bytes into the RESP values that it consists of.
#[derive(Debug, Default)]
pub(super) struct Frames {
    pending: Vec<u8>,
    /// It is something else: no value is looked for any more.
    is_raw: bool,
}

impl Frames {
    /// The values that are complete with these bytes.
    pub(super) fn push(&mut self, bytes: &[u8]) -> Vec<Vec<u8>> {
        self.pending.extend_from_slice(bytes);
        let mut frames = Vec::new();
        let mut start = 0;
        while !self.is_raw && start < self.pending.len() {
            match frame_length(&self.pending[start..]) {
                Ok(Some(length)) => {
                    frames.push(self.pending[start..start + length].to_vec());
                    start += length;
                }
                Ok(None) => break,
                Err(NotResp) => self.is_raw = true,
            }
        }
        self.pending.drain(..start);
        if self.is_raw {
            frames.extend(self.rest());
        }
        frames
    }

    /// What is there of the next value.
    pub(super) fn rest(&mut self) -> Option<Vec<u8>> {
        let rest = std::mem::take(&mut self.pending);
        (!rest.is_empty()).then_some(rest)
    }
}

#[derive(Debug, PartialEq, Eq)]
struct NotResp;

/// The length of the value that `bytes` begin with, if all of it is there.
fn frame_length(bytes: &[u8]) -> Result<Option<usize>, NotResp> {
    match bytes.first() {
        None => return Ok(None),
        Some(b'$' | b'=' | b'!' | b'*' | b'~' | b'>' | b'%' | b'|') => {}
        Some(b'+' | b'-' | b':' | b'_' | b'#' | b',' | b'(') => {}
        Some(_) => return Err(NotResp),
    }
    let Some(line) = bytes.windows(2).position(|window| window == b"\r\n") else {
        return Ok(None);
    };
    let number = || {
        let text = std::str::from_utf8(&bytes[1..line]).ok();
        text.and_then(|text| text.parse::<i64>().ok())
            .ok_or(NotResp)
    };
    let line_end = line + 2;
    let items = match bytes[0] {
        b'$' | b'=' | b'!' => {
            let length = usize::try_from(number()?);
            let length = length.map_or(line_end, |length| line_end + length + 2);
            return Ok((bytes.len() >= length).then_some(length));
        }
        b'*' | b'~' | b'>' => number()?,
        b'%' => 2 * number()?,
        // Attributes stand before the value that they belong to.
        b'|' => 2 * number()? + 1,
        _ => return Ok(Some(line_end)),
    };
    let mut length = line_end;
    for _ in 0..items {
        match frame_length(&bytes[length..])? {
            Some(item) => length += item,
            None => return Ok(None),
        }
    }
    Ok(Some(length))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_found_however_the_bytes_are_cut() {
        let values: [&[u8]; 8] = [
            b"+OK\r\n",
            b"$5\r\na\r\nb\n\r\n",
            b"$-1\r\n",
            b"*2\r\n$3\r\nGET\r\n$1\r\nk\r\n",
            b">2\r\n+message\r\n*-1\r\n",
            b"%1\r\n+role\r\n~2\r\n:1\r\n_\r\n",
            b"|1\r\n+ttl\r\n:1\r\n,1.5\r\n",
            b"-ERR no\r\n",
        ];
        let stream = values.concat();
        for size in 1..stream.len() {
            let mut frames = Frames::default();
            let found: Vec<_> = stream.chunks(size).flat_map(|c| frames.push(c)).collect();
            assert_eq!(found, values, "in pieces of {size}");
            assert_eq!(frames.rest(), None);
        }
    }

    #[test]
    fn a_stream_that_is_not_resp_passes_as_it_comes() {
        let mut frames = Frames::default();
        assert_eq!(
            frames.push(b"+OK\r\n\x16\x03"),
            [&b"+OK\r\n"[..], b"\x16\x03"]
        );
        assert_eq!(frames.push(b"$1"), [b"$1"]);
        let mut frames = Frames::default();
        assert_eq!(frames.push(b"*?\r\n"), [b"*?\r\n"]);
    }
}
