/* The arithmetic of the playground (book/playground.md): a network, plain gradient descent, and five ways to meet a
   second task. It is minicl's, step for step: tests/book/test_playground.py hands both the same weights and batches
   and compares every loss. Nothing here knows of a page. Matrices are typed arrays, row after row. */
(() => {
  "use strict";

  // ---- random numbers: the same seed, the same run ----------------------------------------------------------------

  class Random {
    constructor(seed) {
      this.state = (Math.imul(seed + 1, 2654435769) ^ 0x5bd1e995) | 0 || 1;
      for (let i = 0; i < 8; i++) this.uniform();
    }

    /** From 0 up to, but not including, 1 (xorshift, Marsaglia 2003). */
    uniform() {
      this.state ^= this.state << 13;
      this.state ^= this.state >>> 17;
      this.state ^= this.state << 5;
      return (this.state >>> 0) / 4294967296;
    }

    below(n) {
      return Math.floor(this.uniform() * n);
    }

    normal() {
      return Math.sqrt(-2 * Math.log(1 - this.uniform())) * Math.cos(2 * Math.PI * this.uniform());
    }

    /** The numbers from 0 to n - 1 in a random order. */
    order(n) {
      const order = Array.from({ length: n }, (_, i) => i);
      for (let i = n - 1; i > 0; i--) {
        const j = this.below(i + 1);
        [order[i], order[j]] = [order[j], order[i]];
      }
      return order;
    }
  }

  // ---- data -------------------------------------------------------------------------------------------------------

  /** Two tasks from what tools/playground.py has packed: the images as they are, and with pixels in another order. */
  function tasksFrom(packed) {
    const part = ({ images, labels }) => {
      const x = new Float64Array(labels.length * 64);
      let at = 0;
      for (const letter of images) {
        const code = letter.charCodeAt(0);
        if (code >= 97) at += code - 96; // a to z: so many dark pixels
        else x[at++] = (code - 64) / 16; // A to P: one pixel, from 1 to 16
      }
      return { x, y: Uint8Array.from(labels, Number), n: labels.length };
    };
    const permuted = ({ x, y, n }) => {
      const moved = new Float64Array(x.length);
      for (let i = 0; i < n; i++) packed.order.forEach((from, to) => (moved[64 * i + to] = x[64 * i + from]));
      return { x: moved, y, n };
    };
    const first = { train: part(packed.train), test: part(packed.test) };
    return [first, { train: permuted(first.train), test: permuted(first.test) }];
  }

  /** The rows of a part of a task as one batch. */
  function batchOf({ x, y }, rows, task) {
    const width = x.length / y.length;
    const batch = { x: new Float64Array(rows.length * width), y: new Uint8Array(rows.length), n: rows.length };
    rows.forEach((row, i) => {
      batch.x.set(x.subarray(width * row, width * (row + 1)), width * i);
      batch.y[i] = y[row];
    });
    batch.tasks = new Uint8Array(rows.length).fill(task);
    return batch;
  }

  function joined(a, b) {
    const both = { n: a.n + b.n };
    for (const name of ["x", "y", "tasks"]) {
      both[name] = new a[name].constructor(a[name].length + b[name].length);
      both[name].set(a[name]);
      both[name].set(b[name], a[name].length);
    }
    return both;
  }

  // ---- a network --------------------------------------------------------------------------------------------------

  /** A layer of nOut units that read nIn numbers; the first values are those that PyTorch gives a Linear. */
  function newLayer(nIn, nOut, random) {
    const bound = 1 / Math.sqrt(nIn);
    const draw = (n) => Float64Array.from({ length: n }, () => (2 * random.uniform() - 1) * bound);
    const weight = draw(nIn * nOut);
    const gradients = { dWeight: new Float64Array(nIn * nOut), dBias: new Float64Array(nOut) };
    return { nIn, nOut, weight, bias: draw(nOut), ...gradients };
  }

  /** z = W x + b, for n inputs at once. */
  function linear(layer, x, n) {
    const { nIn, nOut, weight, bias } = layer;
    const z = new Float64Array(n * nOut);
    for (let i = 0; i < n; i++)
      for (let o = 0; o < nOut; o++) {
        let sum = bias[o];
        for (let j = 0, w = o * nIn, a = i * nIn; j < nIn; j++) sum += weight[w + j] * x[a + j];
        z[i * nOut + o] = sum;
      }
    return z;
  }

  /** Adds to the layer's gradients those of n inputs x with the gradients dz of its outputs; returns those of x. */
  function linearBack(layer, x, dz, n) {
    const { nIn, nOut, weight, dWeight, dBias } = layer;
    const dx = new Float64Array(n * nIn);
    for (let i = 0; i < n; i++)
      for (let o = 0; o < nOut; o++) {
        const d = dz[i * nOut + o];
        if (d === 0) continue;
        dBias[o] += d;
        for (let j = 0, w = o * nIn, a = i * nIn; j < nIn; j++) {
          dWeight[w + j] += d * x[a + j];
          dx[a + j] += d * weight[w + j];
        }
      }
    return dx;
  }

  /** Hidden layers, each followed by ReLU and, where a method has them, by gates. Keeps what the way back needs. */
  function forward(layers, x, n, gates) {
    const inputs = [x], outputs = [];
    layers.forEach((layer, l) => {
      const h = linear(layer, inputs[l], n).map((z) => (z > 0 ? z : 0));
      outputs.push(h);
      inputs.push(gates ? h.map((value, k) => value * gates[l][k % layer.nOut]) : h);
    });
    return { inputs, outputs, features: inputs[layers.length] };
  }

  /** The way back through the hidden layers; returns the gradients of the gates, if there are any. */
  function backward(layers, trace, dFeatures, n, gates) {
    const dGates = gates && gates.map((gate) => new Float64Array(gate.length));
    let d = dFeatures;
    for (let l = layers.length - 1; l >= 0; l--) {
      const { nOut } = layers[l], h = trace.outputs[l];
      for (let k = 0; k < d.length; k++) {
        if (gates) {
          dGates[l][k % nOut] += d[k] * h[k];
          d[k] *= gates[l][k % nOut];
        }
        if (h[k] === 0) d[k] = 0;
      }
      d = linearBack(layers[l], trace.inputs[l], d, n);
    }
    return dGates;
  }

  function softmax(z) {
    const highest = Math.max(...z), e = z.map((value) => Math.exp(value - highest));
    const sum = e.reduce((a, b) => a + b, 0);
    return e.map((value) => value / sum);
  }

  // ---- what every method is ----------------------------------------------------------------------------------------

  /** Fine-tuning, and what the others change of it. */
  class FineTune {
    /**
     * widths: of the input and of each hidden layer. strength: of the method, where it has one. ownHeads: whether each
     * task has an output layer (a head) of its own, which takes being told the task; otherwise they share one.
     */
    constructor({ widths, outputs, random, strength = 0, ownHeads = false }) {
      Object.assign(this, { outputs, random, strength, ownHeads });
      this.layers = widths.slice(1).map((width, l) => newLayer(widths[l], width, random));
      this.heads = [];
      this.task = -1;
    }

    /** A task arrives: its number, and its training part. */
    begin(train) {
      this.task += 1;
      this.train = train;
      if (this.ownHeads || !this.heads.length)
        this.heads.push(newLayer(this.layers.at(-1).nOut, this.outputs, this.random));
    }

    head(task) {
      return this.heads[this.ownHeads ? task : 0];
    }

    /** The layers that later tasks train as well: the head too, where they share it. */
    shared() {
      return this.ownHeads ? this.layers : [...this.layers, this.heads[0]];
    }

    /** How a task's epochs are divided; PackNet prunes in between. */
    stages(epochs) {
      return [epochs];
    }

    /** Between two stages. */
    between() {}

    /** The task has been learned. */
    end() {}

    /** The gates behind the hidden layers for a task; none here. */
    gates() {
      return null;
    }

    /** The hidden layers as a task reads them. */
    read() {
      return this.layers;
    }

    /** The mean cross-entropy of a batch; its gradients are left in the layers. */
    crossEntropy(batch, gates = null) {
      const { n, y, tasks } = batch, layers = this.layers, outputs = this.outputs;
      for (const layer of [...layers, ...this.heads]) [layer.dWeight, layer.dBias].forEach((d) => d.fill(0));
      const trace = forward(layers, batch.x, n, gates), width = layers.at(-1).nOut;
      const dFeatures = new Float64Array(n * width);
      let loss = 0;
      for (let i = 0; i < n; i++) {
        const head = this.head(tasks[i]), own = trace.features.subarray(i * width, (i + 1) * width);
        const d = softmax(linear(head, own, 1));
        loss -= Math.log(d[y[i]]) / n;
        d[y[i]] -= 1;
        for (let o = 0; o < outputs; o++) d[o] /= n;
        dFeatures.set(linearBack(head, own, d, 1), i * width);
      }
      this.dGates = backward(layers, trace, dFeatures, n, gates);
      return loss;
    }

    /** The loss that the method minimises, with its gradients. progress: 0 to 1 through each epoch. */
    loss(batch, progress) {
      return this.crossEntropy(batch);
    }

    /** theta <- theta - lr gradient, for what may move. Returns the loss before the step. */
    step(batch, lr, progress) {
      const loss = this.loss(batch, progress);
      this.layers.forEach((layer, l) => {
        descend(layer.weight, layer.dWeight, lr, this.heldWeights(l));
        descend(layer.bias, layer.dBias, lr, this.heldBiases(l));
      });
      for (const head of this.heads) {
        descend(head.weight, head.dWeight, lr);
        descend(head.bias, head.dBias, lr);
      }
      return loss;
    }

    /** What must not move: 1 for held, for each weight of a hidden layer, or null. */
    heldWeights() {
      return null;
    }

    heldBiases() {
      return null;
    }

    /** Logits, for n inputs of a task. */
    logits(x, n, task) {
      return linear(this.head(task), forward(this.read(task), x, n, this.gates(task)).features, n);
    }

    /** The share of right answers on a part of a task; NaN as long as it has no head. */
    accuracy(part, task) {
      if (!this.head(task)) return NaN;
      const z = this.logits(part.x, part.n, task);
      let right = 0;
      for (let i = 0; i < part.n; i++) {
        const own = z.subarray(i * this.outputs, (i + 1) * this.outputs);
        right += own.indexOf(Math.max(...own)) === part.y[i];
      }
      return right / part.n;
    }

    /** What the method has used of the network, in words. */
    used() {
      return "";
    }
  }

  function descend(theta, gradient, lr, held) {
    for (let k = 0; k < theta.length; k++) if (!held || !held[k]) theta[k] -= lr * gradient[k];
  }

  // ---- EWC: every weight on a spring -------------------------------------------------------------------------------

  /** L' = L + lambda/2 sum_i F_i (theta_i - theta*_i)^2, over what later tasks train as well. strength: lambda. */
  class EWC extends FineTune {
    end() {
      super.end();
      const fisher = this.fisher();
      this.springs = this.shared().map(({ weight, bias }, l) => ({
        weight: weight.slice(),
        bias: bias.slice(),
        fWeight: fisher[l].weight,
        fBias: fisher[l].bias,
      }));
    }

    /** F_i: the squared gradient of log p(y | x), for labels drawn from the network's own answers; mean over images. */
    fisher() {
      const { train, task } = this, labels = this.drawnLabels();
      const mean = this.shared().map(({ nIn, nOut }) => ({
        weight: new Float64Array(nIn * nOut),
        bias: new Float64Array(nOut),
      }));
      for (let i = 0; i < train.n; i++) {
        const one = batchOf(train, [i], task);
        one.y[0] = labels[i];
        this.crossEntropy(one);
        this.shared().forEach(({ dWeight, dBias }, l) => {
          for (let k = 0; k < dWeight.length; k++) mean[l].weight[k] += dWeight[k] ** 2 / train.n;
          for (let k = 0; k < dBias.length; k++) mean[l].bias[k] += dBias[k] ** 2 / train.n;
        });
      }
      return mean;
    }

    drawnLabels() {
      const { train, task, outputs } = this, z = this.logits(train.x, train.n, task);
      return Array.from({ length: train.n }, (_, i) => {
        const p = softmax(z.subarray(i * outputs, (i + 1) * outputs));
        let rest = this.random.uniform(), label = 0;
        while (label < outputs - 1 && (rest -= p[label]) >= 0) label += 1;
        return label;
      });
    }

    loss(batch, progress) {
      let loss = super.loss(batch, progress);
      const pull = (theta, anchor, f, gradient) => {
        for (let k = 0; k < theta.length; k++) {
          const displacement = theta[k] - anchor[k];
          loss += (this.strength / 2) * f[k] * displacement ** 2;
          gradient[k] += this.strength * f[k] * displacement;
        }
      };
      (this.springs || []).forEach((spring, l) => {
        const layer = this.shared()[l];
        pull(layer.weight, spring.weight, spring.fWeight, layer.dWeight);
        pull(layer.bias, spring.bias, spring.fBias, layer.dBias);
      });
      return loss;
    }
  }

  // ---- ER: old images come up again --------------------------------------------------------------------------------

  /** Half of every batch is new, half is drawn from memory. strength: how many images of a task are kept. */
  class ER extends FineTune {
    end() {
      super.end();
      const rows = this.random.order(this.train.n).slice(0, this.strength);
      this.remember(rows);
    }

    remember(rows) {
      this.memory = batchOf(this.train, rows, this.task);
    }

    loss(batch) {
      if (!this.memory || !this.memory.n) return this.crossEntropy(batch);
      return this.crossEntropy(joined(batch, batchOf(this.memory, this.drawnRows(batch.n), this.memory.tasks[0])));
    }

    drawnRows(n) {
      return Array.from({ length: n }, () => this.random.below(this.memory.n));
    }

    used() {
      return this.memory ? `The memory holds ${this.memory.n} images of task 1.` : "";
    }
  }

  // ---- PackNet: every weight has one owner -------------------------------------------------------------------------

  /** Train, keep the largest weights, release the rest, train again what is kept. strength: the share that is kept. */
  class PackNet extends FineTune {
    constructor(given) {
      super({ ...given, ownHeads: true });
      this.owners = this.layers.map(({ weight }) => new Uint8Array(weight.length)); // 0: free; k: the k-th task
    }

    begin(train) {
      super.begin(train);
      this.kept = null;
    }

    stages(epochs) {
      const again = Math.floor(epochs / 3);
      return [epochs - again, again];
    }

    /** Prune: of the weights that this task trained, layer by layer, the largest stay. */
    between() {
      this.kept = this.layers.map(({ weight }, l) => {
        const free = [...weight.keys()].filter((k) => this.owners[l][k] === 0);
        const released = Math.round((1 - this.strength) * free.length);
        free.sort((a, b) => Math.abs(weight[a]) - Math.abs(weight[b]));
        const kept = new Uint8Array(weight.length);
        free.slice(released).forEach((k) => (kept[k] = weight[k] === 0 && released ? 0 : 1));
        free.forEach((k) => kept[k] || (weight[k] = 0));
        return kept;
      });
    }

    end() {
      super.end();
      this.owners.forEach((owner, l) => owner.forEach((_, k) => this.kept[l][k] && (owner[k] = this.task + 1)));
      this.kept = null;
    }

    heldWeights(l) {
      return this.owners[l].map((owner, k) => owner !== 0 || (this.kept !== null && !this.kept[l][k]));
    }

    /** Biases are no weights to be shared out: they belong to the first task. */
    heldBiases(l) {
      return this.task > 0 ? new Uint8Array(this.layers[l].nOut).fill(1) : null;
    }

    /** The task at hand reads all that is there; a finished one its own weights and those of tasks before it. */
    read(task) {
      if (task === this.task) return this.layers;
      const off = (l, k) => this.owners[l][k] === 0 || this.owners[l][k] > task + 1;
      return this.layers.map((layer, l) => ({ ...layer, weight: layer.weight.map((w, k) => (off(l, k) ? 0 : w)) }));
    }

    used() {
      const count = (k) => this.owners.reduce((sum, owner) => sum + owner.filter((o) => o === k).length, 0);
      const all = this.owners.reduce((sum, owner) => sum + owner.length, 0);
      if (!count(1)) return "";
      const second = count(2) ? `task 2 ${count(2)}, ` : "";
      return `Of ${all} weights task 1 owns ${count(1)}, ${second}and ${count(0)} are free.`;
    }
  }

  // ---- HAT: gates on units -----------------------------------------------------------------------------------------

  const S_MAX = 400;

  /** Each task learns which units it uses; what goes into a claimed unit moves no more. strength: c, a unit's price. */
  class HAT extends FineTune {
    constructor(given) {
      super({ ...given, ownHeads: true });
      this.masks = []; // of finished tasks: 1 where a unit is used
      this.claimed = this.layers.map(({ nOut }) => new Uint8Array(nOut));
    }

    begin(train) {
      super.begin(train);
      this.scores = this.layers.map(({ nOut }) => Float64Array.from({ length: nOut }, () => this.random.normal()));
      const free = this.claimed.reduce((sum, claimed) => sum + claimed.filter((used) => !used).length, 0);
      const price = (used) => (used ? 0 : this.strength / free);
      this.price = this.claimed.map((claimed) => Float64Array.from(claimed, price));
    }

    /** A bias is held where its unit is claimed, a weight where the units at both its ends are. */
    heldBiases(l) {
      return this.claimed[l];
    }

    heldWeights(l) {
      const { nIn, nOut } = this.layers[l], held = new Uint8Array(nIn * nOut);
      for (let k = 0; k < held.length; k++)
        held[k] = this.claimed[l][Math.floor(k / nIn)] && (l === 0 || this.claimed[l - 1][k % nIn]);
      return held;
    }

    /** L' = L + c R, through gates sigma(s e) that sharpen as s rises in each epoch. */
    loss(batch, progress) {
      const s = (1 - progress) / S_MAX + progress * S_MAX;
      const gates = this.scores.map((scores) => scores.map((e) => 1 / (1 + Math.exp(-s * e))));
      let loss = this.crossEntropy(batch, gates);
      this.dScores = gates.map((gate, l) =>
        gate.map((a, k) => {
          loss += this.price[l][k] * a;
          const e = this.scores[l][k], q = (this.dGates[l][k] + this.price[l][k]) * a * (1 - a) * s;
          const sharp = Math.cosh(Math.max(-50, Math.min(50, s * e)));
          return ((S_MAX / s) * (sharp + 1) * q) / (Math.cosh(e) + 1); // the compensation
        }),
      );
      return loss;
    }

    step(batch, lr, progress) {
      const loss = super.step(batch, lr, progress);
      this.scores.forEach((scores, l) => {
        descend(scores, this.dScores[l], lr);
        scores.forEach((e, k) => (scores[k] = Math.max(-6, Math.min(6, e))));
      });
      return loss;
    }

    /** A score above zero opens the gate; where none is, the highest does. */
    opened() {
      return this.scores.map((scores) => {
        const mask = Uint8Array.from(scores, (e) => e > 0);
        if (!mask.includes(1)) mask[scores.indexOf(Math.max(...scores))] = 1;
        return mask;
      });
    }

    end() {
      super.end();
      const mask = this.opened();
      this.masks.push(mask);
      this.claimed = this.claimed.map((claimed, l) => claimed.map((used, k) => used || mask[l][k]));
    }

    gates(task) {
      return this.masks[task] || this.opened();
    }

    used() {
      const sum = (masks) => masks.reduce((n, mask) => n + mask.filter((open) => open).length, 0);
      if (!this.masks.length) return "";
      const all = this.claimed.reduce((n, claimed) => n + claimed.length, 0);
      if (this.masks.length === 1) return `Of ${all} units task 1 uses ${sum(this.masks[0])}.`;
      const [one, two] = this.masks, both = one.map((mask, l) => mask.map((open, k) => open && two[l][k]));
      return `Of ${all} units task 1 uses ${sum(one)}, task 2 ${sum(two)}, and ${sum(both)} of these are the same.`;
    }
  }

  // ---- a run: two tasks, one after the other -----------------------------------------------------------------------

  const METHODS = { finetune: FineTune, ewc: EWC, er: ER, packnet: PackNet, hat: HAT };
  const NETWORK = { widths: [64, 64, 64], outputs: 10 };
  const MEASURED_EVERY = 5; // steps

  class Run {
    /** tasks: as tasksFrom makes them. epochs: of each task. */
    constructor({ tasks, method, strength, ownHeads, seed, lr, epochs = 12, batchSize = 30 }) {
      Object.assign(this, { tasks, method, strength, seed, lr, epochs, batchSize });
      this.random = new Random(seed);
      this.learner = new METHODS[method]({ ...NETWORK, random: this.random, strength, ownHeads });
      this.perEpoch = Math.ceil(tasks[0].train.n / batchSize);
      this.perTask = this.perEpoch * epochs;
      this.steps = 0;
      this.done = false;
      this.loss = NaN;
      this.curve = [[], []]; // of each task: pairs of step and accuracy
      this.pruned = []; // when PackNet pruned
    }

    /** One step of gradient descent, and what is due before and after it. Returns what happened, or "". */
    step() {
      if (this.done) return "";
      const { learner } = this, inTask = this.steps % this.perTask, inEpoch = inTask % this.perEpoch;
      if (inTask === 0) {
        learner.begin(this.tasks[learner.task + 1].train);
        this.measure();
      }
      if (inEpoch === 0) this.order = this.random.order(learner.train.n);
      const rows = this.order.slice(inEpoch * this.batchSize, (inEpoch + 1) * this.batchSize);
      this.loss = learner.step(batchOf(learner.train, rows, learner.task), this.lr, inEpoch / (this.perEpoch - 1));
      this.steps += 1;
      if (!Number.isFinite(this.loss)) return this.finish("diverged");
      const [first] = learner.stages(this.epochs);
      let happened = "";
      if (inTask + 1 === first * this.perEpoch && first < this.epochs) {
        this.measure();
        learner.between();
        happened = "pruned";
        this.pruned.push(this.steps);
      }
      if (inTask + 1 === this.perTask) {
        learner.end();
        happened = learner.task + 1 === this.tasks.length ? this.finish("finished") : "next task";
      }
      if (happened || this.steps % MEASURED_EVERY === 0) this.measure();
      return happened;
    }

    finish(how) {
      this.done = true;
      return how;
    }

    /** Both accuracies now, added to the curves. */
    measure() {
      this.tasks.forEach(({ test }, t) => {
        const accuracy = this.learner.accuracy(test, t);
        if (!Number.isNaN(accuracy)) this.curve[t].push([this.steps, accuracy]);
      });
    }
  }

  globalThis.PlaygroundEngine = { Random, Run, METHODS, NETWORK, tasksFrom, batchOf };
})();
