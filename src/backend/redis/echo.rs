//! Telling the echo of our own writes from the changes that others make.
//!
//! `CLIENT TRACKING … NOLOOP` keeps a client from hearing of its own writes. Some servers leave
//! out those by its scripts: Redis before 6.2.8, 7.0.0 to 7.0.4, KeyDB. There, whoever extends a
//! key by a script that has read it, and is to be told of changes, is told that the key changed:
//! once for each write, before the reply or right behind it.
//!
//! So an invalidation that comes with a write of ours may be its echo, and a look at the key that
//! begins later tells, unless we have written it again: if nothing has changed, it was one. A
//! server of which that was so twice, and never otherwise, echoes: from then on one invalidation for each
//! write is swallowed, on the connection of that write. Any further one is genuine, because the
//! server sends one for each change. The first write without an echo ends that. So at worst a
//! change is missed that somebody makes within [`LATENESS`] of one of our writes, at a server that was
//! misjudged; the next renewal finds it.

use std::collections::{HashMap, VecDeque};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::clock::Moment;

/// So many echoes are no chance.
const PROOF: u32 = 2;
/// An echo comes this soon behind the reply, if not before it.
const LATENESS: Duration = Duration::from_millis(10);
/// So many keys are remembered until somebody looks at them.
const SUSPECTS: usize = 64;
/// Writes are counted by groups of keys, so that nothing is kept for each key.
const GROUPS: usize = 64;

/// What one connection hears of our own writes.
#[derive(Default)]
pub(crate) struct Echoes {
    server: Arc<Evidence>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    under_way: HashMap<Arc<str>, Writes>,
    /// Writes that were answered and not echoed yet, in the order of their answers.
    expected: VecDeque<Expected>,
}

/// What is known of a server: a look may go over another connection than the write.
#[derive(Default)]
pub(crate) struct Evidence(Mutex<Proofs>);

struct Proofs {
    /// Keys of which an invalidation may have been an echo.
    suspects: HashMap<Arc<str>, Suspect>,
    /// How many writes of each group of keys have begun.
    writes: [u64; GROUPS],
    /// How many echoes were told from changes since the last write without one.
    count: u32,
}

impl Default for Proofs {
    fn default() -> Self {
        Self {
            suspects: HashMap::new(),
            writes: [0; GROUPS],
            count: 0,
        }
    }
}

/// An invalidation that may have been an echo.
struct Suspect {
    since: Instant,
    write: Write,
}

/// A write of ours.
#[derive(Clone, Copy)]
struct Write {
    number: u64,
    lives_until: Moment,
}

/// The writes of a key that are not answered yet.
#[derive(Default)]
struct Writes {
    count: u32,
    /// The number of the last.
    number: u64,
    /// How many invalidations may be their echoes.
    heard: u32,
}

/// A write whose echo may come yet.
struct Expected {
    key: Arc<str>,
    write: Write,
    overdue: Instant,
}

impl Echoes {
    /// Those of a new connection to a server.
    pub(crate) fn from(server: &Arc<Evidence>) -> Self {
        Self {
            server: Arc::clone(server),
            state: Mutex::default(),
        }
    }

    /// A request that may write the key is about to be sent.
    pub(crate) fn begin(&self, key: &Arc<str>) {
        let mut state = self.state.lock();
        self.forget_overdue(&mut state);
        let writes = state.under_way.entry(Arc::clone(key)).or_default();
        writes.count += 1;
        writes.number = self.server.note_write(key);
    }

    /// The request has ended; if it was carried out, the key lives until then. Says whether an
    /// invalidation was taken for its echo that was none.
    pub(crate) fn end(&self, key: &Arc<str>, lives_until: Option<Moment>) -> bool {
        let mut state = self.state.lock();
        let Some(writes) = state.under_way.get_mut(key) else {
            return false;
        };
        writes.count -= 1;
        let was_heard = writes.heard > 0;
        // No request is left whose echo it could be.
        let is_surplus = writes.heard > writes.count;
        if was_heard && (lives_until.is_some() || is_surplus) {
            writes.heard -= 1;
        }
        let number = writes.number;
        if writes.count == 0 {
            state.under_way.remove(key);
        }
        let Some(lives_until) = lives_until else {
            return is_surplus;
        };
        let write = Write {
            number,
            lives_until,
        };
        if was_heard {
            self.server.suspect(key, write);
        } else {
            state.expected.push_back(Expected {
                key: Arc::clone(key),
                write,
                overdue: Instant::now() + LATENESS,
            });
        }
        false
    }

    /// The server told that the key changed. Says whether it may be by somebody else.
    pub(crate) fn hear(&self, key: &str) -> bool {
        let mut state = self.state.lock();
        self.forget_overdue(&mut state);
        let place = state.expected.iter().position(|known| &*known.key == key);
        if let Some(expected) = place.and_then(|place| state.expected.remove(place)) {
            self.server.suspect(&expected.key, expected.write);
            return !self.server.is_proved();
        }
        match state.under_way.get_mut(key) {
            Some(writes) if writes.heard < writes.count => {
                writes.heard += 1;
                !self.server.is_proved()
            }
            _ => true,
        }
    }

    /// Looked at the key: if it is ours, it lives until then.
    pub(crate) fn looked(&self, key: &str, began: Instant, lives_until: Option<Moment>) {
        let mut proofs = self.server.0.lock();
        let suspect = proofs.suspects.get(key);
        let Some(write) = suspect.filter(|s| s.since <= began).map(|s| s.write) else {
            return;
        };
        proofs.suspects.remove(key);
        // A key that is not ours any more may have been given up since.
        let Some(lives_until) = lives_until else {
            return;
        };
        if lives_until < write.lives_until {
            proofs.count = 0;
        } else if proofs.writes[group(key)] == write.number {
            proofs.count += 1;
        }
    }

    fn forget_overdue(&self, state: &mut State) {
        let now = Instant::now();
        while state
            .expected
            .front()
            .is_some_and(|first| first.overdue < now)
        {
            state.expected.pop_front();
            self.server.disprove();
        }
    }
}

impl Evidence {
    fn is_proved(&self) -> bool {
        self.0.lock().count >= PROOF
    }

    fn disprove(&self) {
        let mut proofs = self.0.lock();
        proofs.count = 0;
        proofs.suspects.clear();
    }

    fn note_write(&self, key: &str) -> u64 {
        let mut proofs = self.0.lock();
        let number = &mut proofs.writes[group(key)];
        *number += 1;
        *number
    }

    fn suspect(&self, key: &Arc<str>, write: Write) {
        let mut proofs = self.0.lock();
        if proofs.count < PROOF && proofs.suspects.len() < SUSPECTS {
            let since = Instant::now();
            proofs
                .suspects
                .insert(Arc::clone(key), Suspect { since, write });
        }
    }
}

fn group(key: &str) -> usize {
    let mut hasher = DefaultHasher::new();
    key.hash(&mut hasher);
    hasher.finish() as usize % GROUPS
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIFE: Option<Moment> = Some(Moment::NEVER);

    fn key() -> Arc<str> {
        "k".into()
    }

    /// A connection that has proved to echo.
    fn echoing() -> Echoes {
        let echoes = Echoes::default();
        for _ in 0..PROOF {
            echoes.begin(&key());
            assert!(echoes.hear("k"), "it could be a theft, as far as is known");
            assert!(!echoes.end(&key(), LIFE));
            echoes.looked("k", Instant::now(), LIFE);
        }
        echoes
    }

    #[tokio::test(start_paused = true)]
    async fn one_echo_of_a_write_is_swallowed_before_its_reply() {
        let echoes = echoing();
        echoes.begin(&key());
        assert!(!echoes.hear("k"));
        assert!(echoes.hear("other"));
        assert!(echoes.hear("k"), "the second is genuine");
        assert!(!echoes.end(&key(), LIFE));
        assert!(echoes.hear("k"), "so is one after the reply");
    }

    #[tokio::test(start_paused = true)]
    async fn one_echo_of_a_write_is_swallowed_behind_its_reply() {
        let echoes = Echoes::default();
        for round in 0..3 * PROOF {
            echoes.begin(&key());
            assert!(!echoes.end(&key(), LIFE));
            assert_eq!(echoes.hear("k"), round < PROOF);
            assert!(echoes.hear("k"), "the second is genuine");
            echoes.looked("k", Instant::now(), LIFE);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn connections_to_a_server_share_what_is_known_and_not_what_is_under_way() {
        let first = echoing();
        let second = Echoes::from(&first.server);
        second.begin(&key());
        assert!(first.hear("k"), "here it is no echo");
        assert!(!second.hear("k"));
        assert!(!second.end(&key(), LIFE));
    }

    #[tokio::test(start_paused = true)]
    async fn what_comes_late_is_no_echo() {
        let echoes = echoing();
        echoes.begin(&key());
        assert!(!echoes.end(&key(), LIFE));
        tokio::time::advance(LATENESS * 2).await;
        assert!(echoes.hear("k"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_write_without_an_echo_disproves_it() {
        let echoes = echoing();
        echoes.begin(&key());
        assert!(!echoes.end(&key(), LIFE));
        tokio::time::advance(LATENESS * 2).await;
        echoes.begin(&key());
        assert!(echoes.hear("k"));
        assert!(!echoes.end(&key(), LIFE));
    }

    #[tokio::test(start_paused = true)]
    async fn a_change_during_a_request_that_wrote_nothing_is_told_after_it() {
        let echoes = echoing();
        echoes.begin(&key());
        assert!(!echoes.hear("k"));
        assert!(echoes.end(&key(), None));
    }

    #[tokio::test(start_paused = true)]
    async fn each_of_two_writes_has_its_echo() {
        let echoes = echoing();
        echoes.begin(&key());
        echoes.begin(&key());
        assert!(!echoes.hear("k"));
        assert!(!echoes.end(&key(), LIFE));
        assert!(!echoes.hear("k"));
        assert!(echoes.hear("k"), "the third is genuine");
        assert!(!echoes.end(&key(), LIFE));
    }

    #[tokio::test(start_paused = true)]
    async fn a_change_beside_two_requests_is_told_when_neither_can_have_made_it() {
        let echoes = echoing();
        echoes.begin(&key());
        echoes.begin(&key());
        assert!(!echoes.hear("k"));
        assert!(!echoes.end(&key(), None), "it may be the other's");
        assert!(echoes.end(&key(), None));
        assert!(echoes.state.lock().under_way.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn changes_that_come_with_our_writes_are_no_echoes_if_a_look_finds_them() {
        let echoes = Echoes::default();
        for _ in 0..5 * PROOF {
            echoes.begin(&key());
            assert!(!echoes.end(&key(), LIFE));
            assert!(echoes.hear("k"));
            echoes.looked("k", Instant::now(), Some(Moment::from_nanos(1)));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_look_that_began_before_or_after_another_write_proves_nothing() {
        let early = Instant::now();
        tokio::time::advance(LATENESS / 10).await;
        for is_early in [false, true] {
            let echoes = Echoes::default();
            for _ in 0..5 * PROOF {
                echoes.begin(&key());
                assert!(echoes.hear("k"));
                assert!(!echoes.end(&key(), LIFE));
                if is_early {
                    echoes.looked("k", early, LIFE);
                } else {
                    echoes.begin(&key());
                    assert!(!echoes.end(&key(), None));
                    echoes.looked("k", Instant::now(), LIFE);
                }
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_that_does_not_echo_is_believed_at_once() {
        let echoes = Echoes::default();
        for _ in 0..10 {
            echoes.begin(&key());
            assert!(!echoes.end(&key(), LIFE));
            tokio::time::advance(LATENESS * 2).await;
            assert!(echoes.hear("k"));
        }
        assert!(echoes.state.lock().expected.is_empty());
    }
}
