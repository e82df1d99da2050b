//! A TCP proxy before a server, with the bad habits of a network: one for all that the tests and
//! the torture run need of one.
//!
//! It understands RESP, so it can pick out pushes and single commands. A connection that does not
//! begin with RESP is passed on as mere bytes.

mod connection;
mod resp;

use std::collections::{HashMap, HashSet};
use std::net::TcpListener;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use tokio::runtime::{Builder, Handle, Runtime};
use tokio::sync::watch;

use connection::accept;

/// What happens to what passes in one direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// It passes.
    #[default]
    Pass,
    /// It waits until the mode changes, as in a partition: TCP delivers it when that is over.
    Hold,
    /// It vanishes.
    Swallow,
    /// It takes so much longer. What follows is not held up by that.
    Delay(Duration),
    /// It passes a few bytes at a time.
    Drip,
    /// Half of the next frame passes, then the connection is reset.
    Reset,
}

/// Passes everything on, until it is told otherwise. Ends with the value.
///
/// The connections that it takes are numbered from 0.
#[derive(Debug)]
pub struct Proxy {
    port: u16,
    state: Arc<State>,
}

#[derive(Debug)]
struct State {
    rules: watch::Sender<Rules>,
    /// How many connections were taken.
    taken: AtomicUsize,
    /// How many connections have a request that waits for [`Proxy::let_go`].
    waiting: AtomicUsize,
}

#[derive(Debug, Default)]
struct Rules {
    /// The port to which new connections lead.
    server: u16,
    requests: Mode,
    replies: Mode,
    refuses: bool,
    /// A connection ends when this number changes.
    epoch: u64,
    /// The proxy has gone.
    is_closed: bool,
    swallows_pushes: bool,
    /// Commands that do not reach the server, and what is answered instead.
    answers: HashMap<String, String>,
    /// Connections whose requests wait.
    held: HashSet<usize>,
    /// The connection that carries these bytes next goes silent behind them.
    last_words: Option<String>,
    /// Connections on which nothing passes any more, either way.
    silent: HashSet<usize>,
}

/// Where the proxies run: apart from the runtimes of those who use them, which tests block.
pub fn runtime() -> &'static Handle {
    static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| {
        let mut builder = Builder::new_multi_thread();
        builder.worker_threads(2).thread_name("proxies");
        builder.enable_all().build().expect("a runtime")
    });
    RUNTIME.handle()
}

impl Proxy {
    /// Stands in front of the server at a loopback port.
    pub fn before(server: u16) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a free port");
        listener.set_nonblocking(true).expect("a listener");
        let port = listener.local_addr().expect("its address").port();
        let rules = Rules {
            server,
            ..Rules::default()
        };
        let state = Arc::new(State {
            rules: watch::Sender::new(rules),
            taken: AtomicUsize::new(0),
            waiting: AtomicUsize::new(0),
        });
        runtime().spawn(accept(Arc::clone(&state), listener));
        Self { port, state }
    }

    /// Its own loopback port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Its address.
    pub fn server(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Its URL.
    pub fn url(&self) -> String {
        format!("redis://{}/", self.server())
    }

    /// Leads new connections to the server at another port; those that are there stay.
    pub fn lead_to(&self, server: u16) {
        self.change(|rules| rules.server = server);
    }

    /// From now on requests and replies fare like this.
    pub fn set(&self, requests: Mode, replies: Mode) {
        self.change(|rules| (rules.requests, rules.replies) = (requests, replies));
    }

    /// Passes everything on again, what was held up first, and takes connections.
    pub fn pass(&self) {
        self.change(|rules| {
            (rules.requests, rules.replies) = (Mode::Pass, Mode::Pass);
            rules.refuses = false;
        });
    }

    /// Holds up everything, both ways, as a network does that will deliver later.
    pub fn hold(&self) {
        self.set(Mode::Hold, Mode::Hold);
    }

    /// Requests reach the server; its replies vanish.
    pub fn swallow_replies(&self) {
        self.set(Mode::Pass, Mode::Swallow);
    }

    /// Breaks all connections; new ones are taken.
    pub fn cut(&self) {
        self.change(|rules| rules.epoch += 1);
    }

    /// Breaks all connections, and closes new ones at once.
    pub fn refuse(&self) {
        self.change(|rules| {
            rules.refuses = true;
            rules.epoch += 1;
        });
    }

    /// From now on no push reaches a client.
    pub fn swallow_pushes(&self) {
        self.change(|rules| rules.swallows_pushes = true);
    }

    /// From now on it is as if the server were older than RESP3.
    pub fn refuse_hello(&self) {
        self.answer("HELLO", "ERR unknown command 'HELLO'");
    }

    /// From now on a command is answered with an error, or, if that is empty, by hanging up.
    pub fn answer(&self, command: &str, error: &str) {
        self.change(|rules| {
            let answers = &mut rules.answers;
            answers.insert(command.to_owned(), error.to_owned());
        });
    }

    /// From now on a command reaches the server again.
    pub fn let_pass(&self, command: &str) {
        self.change(|rules| {
            rules.answers.remove(command);
        });
    }

    /// Holds up the requests of one connection.
    pub fn hold_connection(&self, connection: usize) {
        self.change(|rules| {
            rules.held.insert(connection);
        });
    }

    /// Lets the requests of a connection go on.
    pub fn let_go(&self, connection: usize) {
        self.change(|rules| {
            rules.held.remove(&connection);
        });
    }

    /// How many connections have a request that [`Self::hold_connection`] holds up.
    pub fn waiting(&self) -> usize {
        self.state.waiting.load(Ordering::SeqCst)
    }

    /// The connection that carries the next request with `words` goes silent: the server gets that
    /// request, but its reply and all that follows vanish, without an end of the connection.
    pub fn go_silent_behind(&self, words: &str) {
        self.change(|rules| rules.last_words = Some(words.to_owned()));
    }

    /// Forgets the connections that are there, as a firewall does: nothing passes on them any more,
    /// either way, and neither end is told. New ones are taken.
    pub fn forget_connections(&self) {
        let taken = self.taken();
        self.change(|rules| rules.silent.extend(0..taken));
    }

    /// How many connections it has taken so far.
    pub fn taken(&self) -> usize {
        self.state.taken.load(Ordering::SeqCst)
    }

    fn change(&self, change: impl FnOnce(&mut Rules)) {
        self.state.rules.send_modify(change);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.change(|rules| rules.is_closed = true);
    }
}
