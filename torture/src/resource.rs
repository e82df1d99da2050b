//! What the lock protects. It lives in the driver, so that no fault of Redis touches it.
//!
//! * A log that refuses a token smaller than the largest one seen.
//! * A counter with the same check, read and written in two steps: no update may be lost.
//! * A counter without a check: what is lost there is what fencing is for.

use std::io;
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};

use crate::history::{History, TTLS, Write, now};

#[derive(Clone, Copy, Default)]
struct Protected {
    newest: u64,
    fenced: u64,
    unfenced: u64,
}

#[derive(Default)]
pub struct Resource {
    keys: Mutex<[Protected; TTLS.len()]>,
    pub tally: Mutex<Tally>,
}

#[derive(Clone, Copy, Debug, Default)]
pub struct Tally {
    pub accepted: u64,
    pub refused: u64,
    pub lost_fenced: u64,
    pub lost_unfenced: u64,
}

impl Resource {
    pub fn serve(self: &Arc<Self>, listener: UnixListener, history: &Arc<History>) {
        let (resource, history) = (Arc::clone(self), Arc::clone(history));
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (resource, history) = (Arc::clone(&resource), Arc::clone(&history));
                tokio::spawn(async move { resource.talk(stream, &history).await });
            }
        });
    }

    async fn talk(&self, stream: UnixStream, history: &History) -> io::Result<()> {
        let (reader, mut writer) = stream.into_split();
        let mut lines = BufReader::new(reader).lines();
        while let Some(line) = lines.next_line().await? {
            let words: Vec<&str> = line.split(' ').collect();
            let numbers: Option<Vec<u64>> = words[1..].iter().map(|w| w.parse().ok()).collect();
            let answer = match (words[0], numbers.as_deref()) {
                (verb, Some([key, token, value, lane, life, claim])) => {
                    let key = *key as usize;
                    let (answer, noted) = self.carry_out(verb, key, *token, *value);
                    if noted {
                        let lane = *lane as usize;
                        history.with(|record| {
                            record.writes.push(Write {
                                at: now(),
                                key,
                                lane,
                                claim: (lane, *life as usize, *claim),
                                token: *token,
                                accepted: answer.is_some(),
                            });
                        });
                    }
                    answer.map_or("refused".to_owned(), |value| value.to_string())
                }
                _ => "what?".to_owned(),
            };
            writer.write_all(format!("{answer}\n").as_bytes()).await?;
        }
        Ok(())
    }

    /// The answer, `None` for a token that is too old; and whether this is a write under a token.
    fn carry_out(&self, verb: &str, key: usize, token: u64, value: u64) -> (Option<u64>, bool) {
        let (Ok(mut keys), Ok(mut tally)) = (self.keys.lock(), self.tally.lock()) else {
            return (None, false);
        };
        let Some(protected) = keys.get_mut(key) else {
            return (None, false);
        };
        match verb {
            "read-unfenced" => return (Some(protected.unfenced), false),
            "write-unfenced" => {
                tally.lost_unfenced += u64::from(value != protected.unfenced + 1);
                protected.unfenced = value;
                return (Some(value), false);
            }
            _ => {}
        }
        let accepted = token >= protected.newest;
        if verb == "read" {
            // Who reads under a token shuts out older ones, or its update could be lost to them.
            if accepted {
                protected.newest = token;
            }
            return (accepted.then_some(protected.fenced), false);
        }
        if !accepted {
            tally.refused += 1;
            return (None, true);
        }
        tally.accepted += 1;
        protected.newest = token;
        if verb == "write" {
            tally.lost_fenced += u64::from(value != protected.fenced + 1);
            protected.fenced = value;
        }
        (Some(value), true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_smaller_token_than_the_largest_seen_is_refused() {
        let resource = Resource::default();
        assert_eq!(resource.carry_out("log", 0, 5, 0), (Some(0), true));
        assert_eq!(resource.carry_out("log", 0, 4, 0), (None, true));
        assert_eq!(resource.carry_out("log", 1, 4, 0), (Some(0), true));
        assert_eq!(resource.tally.lock().unwrap().refused, 1);
    }

    #[test]
    fn a_reader_shuts_out_older_writers() {
        let resource = Resource::default();
        assert_eq!(resource.carry_out("read", 0, 4, 0), (Some(0), false));
        assert_eq!(resource.carry_out("read", 0, 5, 0), (Some(0), false));
        assert_eq!(resource.carry_out("write", 0, 4, 1), (None, true));
        assert_eq!(resource.carry_out("write", 0, 5, 1), (Some(1), true));
        assert_eq!(resource.tally.lock().unwrap().lost_fenced, 0);
    }

    #[test]
    fn a_lost_update_of_either_counter_is_counted() {
        let resource = Resource::default();
        for verb in ["write", "write-unfenced"] {
            resource.carry_out(verb, 0, 5, 1);
            resource.carry_out(verb, 0, 5, 1);
        }
        let tally = *resource.tally.lock().unwrap();
        assert_eq!((tally.lost_fenced, tally.lost_unfenced), (1, 1));
    }
}
