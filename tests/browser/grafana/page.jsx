// Draws panels of a dashboard from its JSON with Grafana's own components, without a Grafana.
//
// What its libraries lack is made up here, as plainly as it goes: the answers of its data source for
// Prometheus as frames, its transformation "partition by values", its grid. The chart against steps
// lies in no library: curves over a number stand for it. Marks of annotations are not drawn.

import React from 'react';
import { createRoot } from 'react-dom/client';
import { lastValueFrom } from 'rxjs';
import {
  FieldType, Registry, ThemeContext, applyFieldOverrides, createTheme, dateTime,
  getFieldDisplayName, getFieldDisplayValues, getFieldSeriesColor, standardTransformers,
  standardTransformersRegistry, toDataFrame, transformDataFrame,
} from '@grafana/data';
import { BigValue, GlobalStyles, PanelChrome, Table, TimeSeries } from '@grafana/ui';

const transformers = new Map(Object.values(standardTransformers).map((t) => [t.id, t]));
standardTransformersRegistry.setInit(() =>
  [...transformers].map(([id, transformation]) => ({ id, transformation })));

const asIs = (value) => value;
const ROW = 30, GAP = 8, COLUMNS = 24;

function legendOf(format, labels) {
  return format?.replace(/\{\{\s*(.+?)\s*\}\}/g, (_, label) => labels[label] ?? '').trim();
}

function framesOf({ refId, format, legendFormat, step, result }, numTables) {
  const points = (series) => series.values ?? [series.value];
  if (format !== 'table') {
    return result.map((series) => toDataFrame({
      refId,
      fields: [
        { name: 'Time', type: FieldType.time, config: { interval: step * 1000 },
          values: points(series).map(([time]) => time * 1000) },
        { name: 'Value', type: FieldType.number, labels: series.metric,
          values: points(series).map(([, value]) => Number(value)),
          config: { displayNameFromDS: legendOf(legendFormat, series.metric) } },
      ],
    }));
  }
  const labels = [...new Set(result.flatMap((series) => Object.keys(series.metric)))].sort();
  const rows = result.flatMap((series) =>
    points(series).map(([time, value]) => [time * 1000, series.metric, Number(value)]));
  return [toDataFrame({
    refId,
    fields: [
      { name: 'Time', type: FieldType.time, values: rows.map((row) => row[0]) },
      ...labels.map((label) => (
        { name: label, type: FieldType.string, values: rows.map((row) => row[1][label] ?? '') })),
      { name: numTables > 1 ? `Value #${refId}` : 'Value', type: FieldType.number,
        values: rows.map((row) => row[2]) },
    ],
  })];
}

function partition(frame, names) {
  const keys = names.map((name) => frame.fields.find((field) => field.name === name));
  if (keys.includes(undefined)) return [frame];
  const rows = new Map();
  for (let i = 0; i < frame.length; i++) {
    const key = JSON.stringify(keys.map((field) => field.values[i]));
    rows.set(key, [...(rows.get(key) ?? []), i]);
  }
  return [...rows].map(([key, at]) => toDataFrame({
    refId: frame.refId,
    fields: frame.fields.filter((field) => !keys.includes(field)).map((field) => ({
      name: field.name, type: field.type, config: field.config,
      values: at.map((i) => field.values[i]),
      labels: Object.fromEntries(JSON.parse(key).map((value, i) => [names[i], value])),
    })),
  }));
}

// Every property that a panel sets, as Grafana registers them: those of its kind of panel are not
// for times and names, which stand on the other axis.
function propertiesOf({ defaults = {}, overrides = [] }) {
  const { custom = {}, ...plain } = defaults;
  const ids = new Set([
    ...Object.keys(plain), ...Object.keys(custom).map((name) => `custom.${name}`),
    ...overrides.flatMap((override) => override.properties.map((property) => property.id)),
  ]);
  return new Registry(() => [...ids].map((id) => ({
    id, name: id, path: id.replace(/^custom\./, ''), isCustom: id.startsWith('custom.'),
    process: asIs, override: asIs, editor: asIs,
    shouldApply: (field) => !id.startsWith('custom.axis')
      || (field.type !== FieldType.time && field.type !== FieldType.string),
  })));
}

async function dataOf(panel, targets, theme) {
  const numTables = targets.filter((target) => target.format === 'table').length;
  let frames = targets.flatMap((target) => framesOf(target, numTables));
  for (const step of panel.transformations ?? []) {
    frames = step.id === 'partitionByValues'
      ? frames.flatMap((frame) => partition(frame, step.options.fields))
      : await lastValueFrom(transformDataFrame([step], frames));
  }
  const fieldConfig = panel.fieldConfig ?? { defaults: {}, overrides: [] };
  const data = applyFieldOverrides({
    data: frames, fieldConfig, theme, replaceVariables: asIs, timeZone: 'utc',
    fieldConfigRegistry: propertiesOf(fieldConfig),
  });
  if (panel.type === 'xychart') return data.flatMap(againstFirst);
  for (const frame of panel.type === 'timeseries' ? data : []) {
    for (const field of frame.fields.filter((one) => one.type === FieldType.number)) {
      // A colour is chosen by the name, which a field is given when it is asked for it.
      getFieldDisplayName(field, frame, data);
      const { color } = getFieldSeriesColor(field, theme);
      field.config = { ...field.config, color: { mode: 'fixed', fixedColor: color } };
    }
  }
  return data;
}

const PALETTE = ['#73BF69', '#F2CC0C', '#5794F2', '#FF9830', '#F2495C', '#B877D9'];

function againstFirst(frame, index) {
  const [x, ...others] = frame.fields.filter((field) => field.type === FieldType.number);
  return others.map((y) => {
    const color = { mode: 'fixed', fixedColor: PALETTE[index % PALETTE.length] };
    const name = `${y.config.displayName ?? y.name} ${y.labels?.run ?? ''}`;
    const config = { ...y.config, displayName: name, color,
      custom: { ...y.config.custom, fillOpacity: 0 } };
    return { ...frame, fields: [x, { ...y, config, state: undefined }] };
  });
}

function Stat({ panel, data, width, height, theme }) {
  const { options, fieldConfig } = panel;
  const found = data.some((frame) => frame.length) ? getFieldDisplayValues({
    fieldConfig, reduceOptions: options.reduceOptions, replaceVariables: asIs, theme, data,
    timeZone: 'utc',
  }).map((value) => value.display) : [{ text: fieldConfig.defaults.noValue, numeric: NaN }];
  return <div style={{ display: 'flex' }}>{found.map((value, i) => (
    <BigValue key={i} value={value} width={width / found.length} height={height} theme={theme}
      colorMode={options.colorMode} graphMode={options.graphMode} textMode={options.textMode}
      justifyMode="auto" />))}</div>;
}

function Curves({ panel, data, width, height, range }) {
  const legend = { displayMode: 'list', placement: 'bottom', calcs: [], ...panel.options.legend };
  const fields = panel.type !== 'xychart' ? undefined : {
    x: (field, frame) => field === frame.fields[0],
    y: (field, frame) => field !== frame.fields[0] && field.type === FieldType.number,
  };
  return <TimeSeries frames={data} structureRev={1} timeRange={range} timeZone="utc" width={width}
    height={height} legend={legend} options={{ tooltip: { mode: 'none' } }} fields={fields} />;
}

const Rows = ({ data, width, height }) => <Table data={data[0]} width={width} height={height} />;
const KINDS = { stat: Stat, timeseries: Curves, xychart: Curves, table: Rows };

function Panel({ panel, data, range, theme, width }) {
  const { x, y, w, h } = panel.gridPos;
  const cell = (width + GAP) / COLUMNS;
  const size = { width: w * cell - GAP, height: h * (ROW + GAP) - GAP };
  const place = { position: 'absolute', left: x * cell, top: y * (ROW + GAP), ...size };
  if (panel.type === 'row') return <h3 style={{ ...place, margin: 0 }}>{panel.title}</h3>;
  const isEmpty = !data.some((frame) => frame.length);
  const Kind = KINDS[panel.type];
  return <div style={place} className="panel" data-title={panel.title} data-kind={panel.type}
    data-empty={isEmpty}>
    <PanelChrome {...size} title={panel.title} padding={panel.type === 'table' ? 'none' : 'md'}>
      {(width, height) => isEmpty && panel.type !== 'stat' ? <p>No data</p>
        : <Kind panel={panel} data={data} width={width} height={height} range={range} theme={theme} />}
    </PanelChrome></div>;
}

class Fence extends React.Component {
  state = {};
  static getDerivedStateFromError(error) { return { error }; }
  render() {
    const { error } = this.state;
    return error ? <pre className="broken">{String(error.stack)}</pre> : this.props.children;
  }
}

window.show = async ({ title, said, panels, start, end, mode, width }) => {
  const theme = createTheme({ colors: { mode } });
  const [from, to] = [dateTime(start * 1000), dateTime(end * 1000)];
  const range = { from, to, raw: { from, to } };
  const made = await Promise.all(panels.map(async ({ panel, targets }) => (
    { panel, data: panel.type === 'row' ? [] : await dataOf(panel, targets, theme) })));
  const bottom = Math.max(...panels.map(({ panel }) => panel.gridPos.y + panel.gridPos.h));
  const inside = width - 32;
  createRoot(document.getElementById('root')).render(
    <ThemeContext.Provider value={theme}><GlobalStyles isExtensionSidebarOpen={false} />
      <div id="page" style={{ padding: 16, background: theme.colors.background.canvas }}>
        <h4>{title}</h4><p>{said}</p>
        <div style={{ position: 'relative', height: bottom * (ROW + GAP) }}>
          {made.map((one, i) => (
            <Fence key={i}><Panel {...one} range={range} theme={theme} width={inside} /></Fence>))}
        </div></div></ThemeContext.Provider>);
};
