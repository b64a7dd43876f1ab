// Asks a model about a picture, on this machine alone: decode, squash as `artinsight_predict` does, infer, show.

// ---- Pixels: Pillow's antialiased bilinear resampling in whole numbers, so that both see the same picture.

const BITS = 22;

// For each of `to` places the first pixel of `from` that counts, and what it and those after it weigh.
function weigh(from, to) {
  const scale = from / to, support = Math.max(scale, 1), taps = [];
  for (let place = 0; place < to; place++) {
    const centre = (place + .5) * scale;
    const first = Math.max(Math.trunc(centre - support + .5), 0);
    const end = Math.min(Math.trunc(centre + support + .5), from);
    const raw = [];
    for (let x = first; x < end; x++) raw.push(Math.max(0, 1 - Math.abs((x - centre + .5) / support)));
    const sum = raw.reduce((a, b) => a + b, 0);
    taps.push({first, weights: raw.map(w => Math.trunc(.5 + w / sum * 2 ** BITS))});
  }
  return taps;
}

// Resample along one axis. `step` is from pixel to pixel along it, `line` from line to line; of the source, the result.
function resample(source, from, to, lines, [step, line], [newStep, newLine]) {
  const taps = weigh(from, to), result = new Uint8ClampedArray(to * lines * 3);
  for (let l = 0; l < lines; l++) for (let x = 0; x < to; x++) for (let c = 0; c < 3; c++) {
    const {first, weights} = taps[x];
    let sum = 2 ** (BITS - 1), at = l * line + first * step + c;
    for (const weight of weights) {sum += source[at] * weight; at += step}
    result[l * newLine + x * newStep + c] = sum >> BITS;
  }
  return result;
}

function resize(pixels, channels, width, height, side) {
  const across = resample(pixels, width, side, height, [channels, channels * width], [3, 3 * side]);
  return resample(across, height, side, side, [3 * side, 3], [3 * side, 3]);
}

// ---- Files: what begins as a picture that is read; upright, on white, without a colour profile, as Pillow gives it.

const MAX_BYTES = 20e6, MAX_PIXELS = 40e6;
const BEGINNINGS = [/^\xff\xd8/, /^\x89PNG/, /^GIF8/, /^RIFF[^]{4}WEBP/, /^BM/];

async function measure(file) {  // without decoding it
  const address = URL.createObjectURL(file), image = new Image();
  try {
    await new Promise((done, failed) => {image.onload = done; image.onerror = failed; image.src = address});
    return image.naturalWidth * image.naturalHeight;
  } finally {URL.revokeObjectURL(address)}
}

async function decode(file) {
  if (file.size > MAX_BYTES) throw Error(`larger than ${MAX_BYTES / 1e6} MB`);
  const head = String.fromCharCode(...new Uint8Array(await file.slice(0, 16).arrayBuffer()));
  if (!BEGINNINGS.some(begin => begin.test(head))) throw Error('not a JPEG, PNG, GIF, WebP or BMP picture');
  const pixels = await measure(file).catch(() => {throw Error('damaged, or not a picture')});
  if (pixels > MAX_PIXELS) throw Error(`more than ${MAX_PIXELS / 1e6} million pixels`);
  const options = {imageOrientation: 'from-image', colorSpaceConversion: 'none', premultiplyAlpha: 'none'};
  const bitmap = await createImageBitmap(file, options).catch(() => {throw Error('damaged, or not a picture')});
  const canvas = document.createElement('canvas');
  [canvas.width, canvas.height] = [bitmap.width, bitmap.height];
  const brush = canvas.getContext('2d', {willReadFrequently: true, colorSpace: 'srgb'});
  brush.fillStyle = 'white';
  brush.fillRect(0, 0, bitmap.width, bitmap.height);
  brush.drawImage(bitmap, 0, 0);
  bitmap.close();
  return canvas;
}

function squash(canvas, sides) {  // uint8 (3, side, side)
  const {width, height} = canvas;
  let pixels = canvas.getContext('2d').getImageData(0, 0, width, height).data, from = [4, width, height];
  for (const side of sides) {pixels = resize(pixels, ...from, side); from = [3, side, side]}
  const area = from[1] * from[2];
  return Uint8Array.from({length: 3 * area}, (_, i) => pixels[i % area * 3 + Math.floor(i / area)]);
}

// ---- The model: ONNX Runtime, whose files must be the ones that the settings name.

async function load(settings) {
  const get = ({url, integrity}) => fetch(url, {integrity, credentials: 'omit'}).then(got => {
    if (!got.ok) throw Error(`${url} cannot be read (${got.status})`);
    return got.arrayBuffer();
  });
  const [code, wasm, model] = await Promise.all([settings.runtime.js, settings.runtime.wasm, settings.model].map(get));
  const address = URL.createObjectURL(new Blob([code], {type: 'text/javascript'}));
  const ort = await import(address);
  URL.revokeObjectURL(address);
  Object.assign(ort.env.wasm, {wasmBinary: wasm, numThreads: 1, proxy: false});
  const session = await ort.InferenceSession.create(model, {executionProviders: ['wasm']});
  return async pixels => {
    const pictures = new ort.Tensor('uint8', pixels, [1, 3, settings.size, settings.size]);
    const {probabilities, maps} = await session.run({pictures});
    return {probs: Array.from(probabilities.data), maps: maps && maps.data};
  };
}

// ---- What the numbers say.

const sumOver = (probs, numbers, n) => {
  const sums = Array(n).fill(0);
  probs.forEach((p, i) => sums[numbers[i]] += p);
  return sums;
};
const largest = values => values.indexOf(Math.max(...values));

function judge(settings, probs) {
  const best = largest(probs), answer = {class: settings.classes[best], probability: probs[best], probabilities: probs};
  answer.unsure = settings.threshold === null || probs[best] < settings.threshold;
  for (const [kind, {names, numbers}] of Object.entries(settings.kinds)) {
    answer[`${kind}s`] = sumOver(probs, numbers, names.length);
    answer[kind] = names[largest(answer[`${kind}s`])];
  }
  if (answer.origins) answer.AI = answer.origins[settings.kinds.origin.names.indexOf('AI')];
  return answer;
}

// How much each class's map counts in the map of an answer: the gradient of its logit, log-sum-exp or log-odds.
function shares(settings, answer, kind) {
  const p = answer.probabilities;
  if (kind === 'class') return p.map((_, i) => Number(settings.classes[i] === answer.class));
  const {names, numbers} = settings.kinds[kind], asked = names.indexOf(answer[kind]);
  const inside = p.reduce((sum, q, i) => sum + (numbers[i] === asked ? q : 0), 0);
  const outside = p.reduce((sum, q, i) => sum + (numbers[i] === asked ? 0 : q), 0);
  return p.map((q, i) => numbers[i] === asked ? q / inside : kind === 'origin' ? -q / Math.max(outside, 1e-30) : 0);
}

function gradcam(settings, maps, weights) {  // cells in 0..1
  const area = settings.map.height * settings.map.width;
  const cells = Array.from({length: area}, (_, at) => Math.max(0,
    weights.reduce((sum, weight, i) => sum + weight * maps[i * area + at], 0)));
  const top = Math.max(...cells);
  return cells.map(cell => top ? cell / top : 0);
}

// ---- The page.

const $ = id => document.getElementById(id);
const percent = part => `${Math.round(100 * part)} %`;
const words = name => name.replaceAll('_', ' ').replace('post impressionism', 'post-impressionism')
  .replace('ukiyo e', 'ukiyo-e');

function make(tag, text = '', attributes = {}, ...children) {
  const node = document.createElement(tag);
  node.textContent = text;
  Object.entries(attributes).forEach(([name, value]) => node.setAttribute(name, value));
  node.append(...children);
  return node;
}

function bars(title, names, parts, colour = () => 'style') {
  const rows = names.map((name, i) => {
    const bar = make('i', '', {class: colour(name)});
    bar.style.width = `${55 * parts[i]}%`;
    return make('tr', '', {}, make('th', words(name), {scope: 'row'}),
      make('td', '', {}, make('div', '', {class: 'bar'}, bar, percent(parts[i]))));
  });
  return make('table', '', {}, make('caption', title), make('tbody', '', {}, ...rows));
}

function gauge(ai) {
  const mark = make('i');
  mark.style.left = `${100 * ai}%`;
  const label = `Origin: human ${percent(1 - ai)}, AI ${percent(ai)}`;
  const scale = {class: 'gauge', role: 'meter', 'aria-valuemin': 0, 'aria-valuemax': 100,
    'aria-valuenow': Math.round(100 * ai), 'aria-label': label};
  return [make('div', '', scale, mark), make('div', '', {class: 'ends'},
    make('span', `human ${percent(1 - ai)}`), make('span', `AI ${percent(ai)}`))];
}

function verdict(settings, answer) {  // in plain words, and from human to AI
  const made = {AI: 'made by AI', human: 'made by a human'}[answer.origin];
  const name = [answer.style && words(answer.style), made].filter(Boolean).join(', ') || words(answer.class);
  const note = `My first choice of ${settings.classes.length}, ${words(answer.class)}, gets `
    + percent(answer.probability) + (answer.unsure ? ': too little to rely on.' : '.');
  const head = answer.unsure ? `Not sure. My best guess: ${name}` : `This looks like ${name}`;
  const box = make('div', '', {class: answer.unsure ? 'unsure' : ''}, make('h2', head), make('p', note, {class: 'note'}));
  if (answer.origins) box.append(...gauge(answer.AI));
  return box;
}

function alarms(settings, answer) {  // at each stated rate of false alarms: is this called AI?
  const cells = (tag, texts) => make('tr', '', {}, ...texts.map(text => make(tag, text)));
  const rows = settings.alarms.map(({rate, limit, found}) => cells('td',
    [rate, found, `${answer.AI > limit ? 'AI' : 'not called AI'}, limit ${Number((100 * limit).toPrecision(4))} %`]));
  const note = `From ${settings.alarm_pictures} human validation pictures; in brackets, 95 % intervals.`;
  return [make('table', '', {class: 'alarms'}, make('caption', 'May a human be called AI?'),
    make('thead', '', {}, cells('th', ['human pictures called AI', 'AI pictures found', 'this picture'])),
    make('tbody', '', {}, ...rows)), make('p', note, {class: 'note'})];
}

function details(settings, answer) {
  const parts = [];
  if (answer.styles) {
    const order = answer.styles.map((_, i) => i).sort((a, b) => answer.styles[b] - answer.styles[a]).slice(0, 3);
    const {names} = settings.kinds.style;
    parts.push(bars('Likeliest styles', order.map(i => names[i]), order.map(i => answer.styles[i])));
  }
  const colour = name => settings.kinds.origin ? (name.startsWith('human') ? 'human' : 'AI') : 'style';
  parts.push(bars(`All ${settings.classes.length} classes`, settings.classes, answer.probabilities, colour));
  if (answer.origins && settings.alarms.length) parts.push(...alarms(settings, answer));
  const numbers = make('pre', JSON.stringify(answer, null, 1), {id: 'numbers', tabindex: 0});
  parts.push(make('details', '', {}, make('summary', 'The numbers'), numbers));
  return parts;
}

function drawPhoto(canvas) {
  const small = $('photo'), scale = Math.min(1, 640 / Math.max(canvas.width, canvas.height));
  small.width = Math.max(1, canvas.width * scale);
  small.height = Math.max(1, canvas.height * scale);
  small.getContext('2d').drawImage(canvas, 0, 0, small.width, small.height);
}

function drawHeat(settings, cells) {  // enlarged bilinearly, then coloured
  const {height, width} = settings.map, side = 256, heat = $('heat');
  heat.width = heat.height = side;
  const image = new ImageData(side, side);
  const near = (place, n) => {
    const x = Math.max(0, (place + .5) * n / side - .5), low = Math.min(Math.trunc(x), n - 1);
    return [low, Math.min(low + 1, n - 1), x - low];
  };
  for (let y = 0; y < side; y++) for (let x = 0; x < side; x++) {
    const [top, bottom, down] = near(y, height), [left, right, over] = near(x, width);
    const row = r => cells[r * width + left] * (1 - over) + cells[r * width + right] * over;
    const value = row(top) * (1 - down) + row(bottom) * down;
    image.data.set([...settings.colours[Math.min(255, Math.trunc(value * 256))], 255], 4 * (y * side + x));
  }
  heat.getContext('2d').putImageData(image, 0, 0);
}

function showMap(settings, answer, maps, kind) {
  const cells = gradcam(settings, maps, shares(settings, answer, kind)), empty = !cells.some(Boolean);
  const {width, height, layer} = settings.map, asked = words(answer[kind]);
  drawHeat(settings, cells);
  $('heat').hidden = empty;  // a veil would look like an answer
  const text = empty ? `Nothing in the picture speaks for ${asked}.`
    : `What speaks for ${asked}: yellow most, violet least. ${height}x${width} cells of layer ${layer}.`;
  $('speaks').textContent = text;
  $('stack').setAttribute('aria-label', `The picture. ${text}`);
  answer.map = {asked: answer[kind], cells};
  $('numbers').textContent = JSON.stringify(answer, null, 1);
}

function prepare(settings) {
  $('question').textContent = document.title = settings.question;
  $('about').textContent = `${settings.experiment}, trained on ${settings.trained_on}`;
  $('warning').textContent = settings.warning;
  $('warning').hidden = !settings.warning;
  $('no-map').textContent = settings.no_map;
  $('opacity').oninput = () => {$('heat').style.opacity = $('opacity').value / 100};
  for (const kind of ['class', ...['origin', 'style'].filter(kind => settings.kinds[kind])]) {
    const choice = make('input', '', {type: 'radio', name: 'target', value: kind});
    choice.checked = kind === 'class';
    $('targets').append(make('label', '', {}, choice, ` ${kind}`));
  }
}

function say(text, role = 'status') {
  $('verdict').replaceChildren(make('p', text, {role, id: 'state'}));
  $('answer').replaceChildren();
}

async function start() {
  const settings = await fetch('settings.json').then(got => got.json());
  prepare(settings);
  const ask = await load(settings);
  let latest = 0;
  async function show(file) {
    const mine = ++latest;
    say('Looking ...');
    for (const part of ['stack', 'asking', 'no-map']) $(part).hidden = true;
    try {
      const canvas = await decode(file);
      const {probs, maps} = await ask(squash(canvas, [settings.squash, settings.size]));
      if (mine !== latest) return;
      const answer = judge(settings, probs);
      drawPhoto(canvas);
      $('verdict').replaceChildren(verdict(settings, answer));
      $('answer').replaceChildren(...details(settings, answer));
      $('stack').hidden = false;
      $('asking').hidden = !settings.map;
      $('heat').hidden = !settings.map;
      $('no-map').hidden = !settings.no_map;
      const draw = () => showMap(settings, answer, maps, document.querySelector('[name=target]:checked').value);
      $('targets').onchange = draw;
      if (settings.map) draw();
      else $('stack').setAttribute('aria-label', 'The picture');
    } catch (error) {
      if (mine === latest) say(`${file.name} cannot be read: ${error.message}.`, 'alert');
    }
  }
  let queue = Promise.resolve();  // one picture after the other: the runtime answers one question at a time
  const choose = files => {if (files.length) queue = queue.then(() => show(files[0]))};
  $('file').onchange = () => choose($('file').files);
  document.addEventListener('paste', event => choose(event.clipboardData.files));
  for (const kind of ['dragover', 'dragleave', 'drop']) document.addEventListener(kind, event => {
    event.preventDefault();
    $('drop').classList.toggle('over', kind === 'dragover');
    if (kind === 'drop') choose(event.dataTransfer.files);
  });
  say('Ready: choose a picture.');
  document.body.dataset.ready = 'yes';
  choose($('file').files);
}

start().catch(error => say(`This page cannot work here: ${error.message}. Serve its folder by a web server.`, 'alert'));
